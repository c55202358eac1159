"""The quickstart's settings: a small UniToken and the training runs that make it, for two CPU cores.

Every run goes through the same `train` as the 7B model; only the numbers differ. The paper starts from a
decoder that draws (Lumina-mGPT) and from SigLIP; the package's base model is that at this size, and stages I
to III follow it. `FROM_SCRATCH` makes the base first: SigLIP from labels of what is where, then a decoder
that reads its features alone. Beside codes, which are easier to read, SigLIP would learn where things are and
what colour they have, but never what they are. Hence also Muon and the larger learning rates: so few steps
cannot converge with AdamW (benchmarks/RESULTS.md).
"""

import dataclasses
import pathlib
from typing import Literal

from unitoken_jax.config import (
    Config,
    DataConfig,
    DecoderConfig,
    GenerationConfig,
    ModelConfig,
    OptimizerConfig,
    ParameterGroup,
    SequenceConfig,
    SiglipConfig,
    SiglipTrainConfig,
    SourceConfig,
    TrainConfig,
    VQConfig,
    VQTrainConfig,
)
from unitoken_jax.scenes.dataset import Dataset, DatasetSettings
from unitoken_jax.scenes.scene import CELL, SIZE

VQ_IMAGES = 8000  # training images the VQ tokenizer sees
VOCABULARY = 1152  # text tokens, codes and control tokens together


def model_config() -> ModelConfig:
    """A code a cell, and a SigLIP patch a cell: 9 discrete and 9 continuous tokens an image."""
    return ModelConfig(
        # Twice the VQ tokenizer's resolution: what people draw is not on the grid.
        siglip=SiglipConfig(image_size=2 * SIZE, patch_size=2 * CELL, width=192, depth=3, heads=4, mlp=512),
        vq=VQConfig(
            codes=512,
            embed_dim=32,
            latent_channels=64,
            base_channels=8,  # convolutions at full resolution are what costs on a CPU
            channel_multipliers=(1, 2, 8, 8),
            res_blocks=0,
            resolution=SIZE,
            mid_attention=False,
            norm_groups=0,  # statistics over a few pixels hide how bright they are: 3 dB
        ),
        decoder=DecoderConfig(
            vocab_size=VOCABULARY, width=192, depth=4, heads=4, kv_heads=4, mlp=512, dropout=0.0
        ),
        sequence=SequenceConfig(resolution="base", image_size=(SIZE, SIZE), size_unit=CELL),
        # Of 64 codes at temperature 1, one image in twenty more was wrong.
        generation=GenerationConfig(guidance=2.0, top_k=8, temperature=0.7, max_answer_tokens=32),
    )


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training run.

    Args:
        name: of its folder.
        purpose: what it is for, as the terminal shows it.
        steps: optimizer steps in as many minutes as the recipe is for.
        mixture: weights of the data set's files, by the names of `Dataset`'s properties.
        optimizer: what is trained, and how fast.
        encoding: how it reads the images of questions (`SequenceConfig.encoding`).
    """

    name: str
    purpose: str
    steps: int
    mixture: dict[str, float]
    optimizer: OptimizerConfig
    encoding: Literal["unified", "discrete", "continuous"] = "unified"


def muon(pattern: str, rate: float) -> OptimizerConfig:
    """Muon at peak rate `rate` for parameters that `pattern` finds ("siglip|adapter"); the rest is frozen."""
    groups = (ParameterGroup(pattern, rate),)
    return OptimizerConfig(
        name="muon",
        newton_schulz_steps=3,
        groups=groups,
        clip_norm=1.0,
        warmup_fraction=0.03,
        weight_decay=0.1,
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a quickstart trains, in which order.

    Args:
        minutes: what `examples` and the steps of `stages` are for; all scale with the minutes given.
        examples: sizes of the data set.
        stages: the training runs, each from where the one before it ended.
    """

    minutes: float
    examples: DatasetSettings
    stages: tuple[Stage, ...]

    def dataset_settings(self, minutes: float, seed: int) -> DatasetSettings:
        """Sizes of the data set for `minutes`; there are never too few examples to train on."""
        share = minutes / self.minutes
        sizes = dataclasses.asdict(self.examples) | {"seed": seed}
        for name, size in sizes.items():
            if name.startswith("train_"):
                sizes[name] = max(200, round(size * share))
            elif name != "seed":  # held out: more would only take time
                sizes[name] = max(4, round(size * min(1.0, share)))
        return DatasetSettings(**sizes)

    def steps(self, stage: Stage, minutes: float) -> int:
        """Optimizer steps of `stage` in `minutes`."""
        return max(4, round(stage.steps * minutes / self.minutes))


def _paper_stages(first: int, second: int, third: int) -> tuple[Stage, ...]:
    """Stages I to III of the paper, of so many steps."""
    return (
        Stage(
            "stage1",
            "SigLIP and the adapter align with the frozen decoder",
            first,
            {"train_captions": 1.0},
            muon("siglip|adapter", 2.5e-4),
        ),
        Stage(
            "stage2",
            "all parameters, understanding and generation",
            second,
            {"train_generation": 1.0, "train_understanding": 2.0},
            muon("siglip|adapter|decoder", 7e-4),
        ),
        Stage(
            "stage3",
            "instruction following, with more of what is hard",
            third,
            {"train_instruct": 1.0},
            muon("siglip|adapter|decoder", 3e-4),
        ),
    )


PRETRAINING = Stage(
    "base",
    "from random weights, but for SigLIP: the decoder learns to read features, and to draw",
    1500,
    {"train_generation": 3.5, "train_understanding": 6.5},
    muon("siglip|adapter|decoder", 1.5e-3),
    encoding="continuous",
)
FROM_BASE = Recipe(
    5.0,
    DatasetSettings(train_captions=800, train_understanding=3000, train_generation=3000, train_instruct=1500),
    _paper_stages(25, 280, 120),
)
FROM_SCRATCH = Recipe(
    15.0,
    DatasetSettings(
        train_captions=12000, train_understanding=9000, train_generation=12000, train_instruct=4000
    ),
    (PRETRAINING, *_paper_stages(40, 400, 160)),
)


def vq_train_config(minutes: float, seed: int) -> VQTrainConfig:
    """The training of the image tokenizer in a quickstart of `minutes` from random weights."""
    steps = max(30, round(1800 * minutes / FROM_SCRATCH.minutes))
    return VQTrainConfig(
        steps=steps, batch=16, learning_rate=2e-3, autoencoder_steps=round(steps * 0.2), seed=seed
    )


def siglip_train_config(minutes: float, seed: int) -> SiglipTrainConfig:
    """The training of SigLIP alone in a quickstart of `minutes` from random weights."""
    return SiglipTrainConfig(steps=max(30, round(3200 * minutes / FROM_SCRATCH.minutes)), seed=seed)


def run_config(stage: Stage, dataset: Dataset, start: pathlib.Path, steps: int, seed: int) -> Config:
    """The settings of a training run.

    Args:
        stage: what is trained, and on which files.
        dataset: where these files are.
        start: the model directory to start from.
        steps: optimizer steps.
        seed: of the order of examples.
    """
    sources = tuple(
        SourceConfig(path=str(getattr(dataset, name)), weight=weight)
        for name, weight in stage.mixture.items()
    )
    model = model_config()
    model = dataclasses.replace(model, sequence=dataclasses.replace(model.sequence, encoding=stage.encoding))
    return Config(
        model=model,
        data=DataConfig(sources=sources, row_length=320, row_crops=8, row_images=10, rows=5, codes="offline"),
        optimizer=stage.optimizer,
        train=TrainConfig(
            steps=steps,
            seed=seed,
            dtype="float32",
            remat="none",
            scan_layers=False,
            loss_chunk=320,
            init_from=str(start),
            save_every=max(100, steps // 2),
            log_every=10,
            keep=1,
        ),
    )
