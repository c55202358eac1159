"""Every setting, as frozen dataclasses: one a module of the model, one a part of training.

Defaults are UniToken-7B's published values. A config file states only what differs (`from_dict`), and an
unknown key is an error that suggests the nearest one. Plain Python: no jax, no ml_collections.
"""

import dataclasses
import difflib
import json
import types
import typing
from typing import Literal


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """SigLIP vision tower; defaults are SO400M/14-384."""

    image_size: int = 384
    patch_size: int = 14
    width: int = 1152
    depth: int = 27
    heads: int = 16
    mlp: int = 4304
    norm_eps: float = 1e-6

    @property
    def grid(self) -> int:
        """Patches a side; leftover pixels are dropped (384 / 14 -> 27)."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2


@dataclasses.dataclass(frozen=True)
class VQConfig:
    """VQ-GAN tokenizer; defaults are Chameleon's. Field by field what vqgan.yaml's ddconfig says."""

    codes: int = 8192
    embed_dim: int = 256
    latent_channels: int = 256
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    resolution: int = 512
    attention_resolutions: tuple[int, ...] = ()
    mid_attention: bool = True
    # 0: no normalisation. Over a small image, mostly background, it hides what little there is.
    norm_groups: int = 32
    commitment: float = 0.25

    @property
    def stride(self) -> int:
        """Pixels a code covers, a side."""
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Chameleon decoder; defaults are 7B. The 34B model has qk_norm_shards 4 and norm "output"."""

    vocab_size: int = 65536
    width: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    mlp: int = 11008
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    qk_norm_shards: int = 1  # rows of the QK LayerNorm's weights, each shared by heads / shards heads
    norm: Literal["pre", "output"] = "pre"  # normalise each branch's input (7B) or its output (34B)
    dropout: float = 0.05

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """How images and turns become one sequence; published_sequence() is the released code's variant."""

    encoding: Literal["unified", "discrete", "continuous"] = "unified"
    resolution: Literal["anyres", "base"] = "anyres"
    # Tiles (rows, columns) of any-res images, in the order ties are broken.
    grids: tuple[tuple[int, int], ...] = ((2, 1), (1, 2), (2, 2), (3, 1), (1, 3))
    image_size: tuple[int, int] = (512, 512)  # height, width of the discrete crop in pixels
    size_unit: int = 32  # pixels the two size tokens of an image count in
    crop: Literal["center", "random"] = "center"  # where the discrete crop is taken in training
    supervise_sep: bool = False  # the released code learns every SEP, also those in prompts
    features_in_answers: bool = False  # the released code adds continuous features to images in answers
    # Which tokens of an image in an answer are learnt: all of begin ... end, or its codes alone.
    image_labels: Literal["all", "codes"] = "all"
    # Text between a prompt and begin-of-image when generating; the released code has a space there.
    text_before_image: str = ""


def published_sequence(**changes) -> SequenceConfig:
    """The released code's variant: SEP supervised everywhere, features also in answers."""
    return SequenceConfig(supervise_sep=True, features_in_answers=True, text_before_image=" ", **changes)


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Sampling defaults a model directory carries; every call can override them."""

    guidance: float = 3.0
    top_k: int = 4000
    temperature: float = 1.0
    max_answer_tokens: int = 512
    # Tokens a pass reads while an image is drawn: the same image in fewer passes; 0 is plain decoding.
    # None: 16 on an accelerator, where reading the weights is what takes a pass its time; 0 on a CPU.
    speculate: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything a model directory's config.json holds."""

    siglip: SiglipConfig = SiglipConfig()
    vq: VQConfig = VQConfig()
    decoder: DecoderConfig = DecoderConfig()
    sequence: SequenceConfig = SequenceConfig()
    generation: GenerationConfig = GenerationConfig()


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """What `pattern` finds (re.search) in paths like "decoder/lm_head/kernel" trains at this peak rate."""

    pattern: str
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The first group that matches counts; what matches none is frozen. Rate 0 freezes too.

    "muon" is for training from random weights: its matrices get orthogonal updates of AdamW's size, the rest
    AdamW. The paper fine-tunes with "adamw".
    """

    name: Literal["adamw", "muon"] = "adamw"
    groups: tuple[ParameterGroup, ...] = ()
    b1: float = 0.9
    b2: float = 0.95
    moment_dtype: Literal["float32", "bfloat16"] = "float32"  # of the first moment
    eps: float = 1e-8
    weight_decay: float = 0.1  # on every trained parameter
    clip_norm: float = 4.0
    warmup_fraction: float = 0.01
    z_loss: float = 1e-5


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data set of conversations; all paths may be local or URLs that etils opens (gs://...).

    kind "json": a JSON or JSONL file; "array_record": files (a folder, a pattern) whose records are JSON
    conversations; "tfds": a prepared data set's folder or a name such as "chartqa:1.0.0". "auto" sees it
    from the path.
    """

    path: str = ""
    weight: float = 1.0  # share of the mixture, in what `DataConfig.mix` says
    images: str = ""  # folder, or tar shards "x/*.tar", of relative image paths; empty: the file's folder
    codes: str = ""  # folder of VQ codes made beforehand; empty: beside the data
    ratio: float = 1.0  # share of the set's examples that is used at all, always the same ones
    kind: Literal["auto", "json", "array_record", "tfds"] = "auto"
    split: str = "train"  # of a TFDS data set; slices too ("train[:50%]")
    mapping: str = ""  # TFDS example -> conversation: "package.module:function" or "file.py:function"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The input pipeline.

    `mix` says what weights are shares of: "rows" (each source's examples share rows among themselves) or
    "examples" (those of all sources are packed together, which fills rows better and keeps proportions
    counted in samples, as the paper's Table 1 does).
    """

    sources: tuple[SourceConfig, ...] = ()
    validation: tuple[SourceConfig, ...] = ()
    row_length: int = 5120  # tokens a packed row holds
    # The first tokens of a row are set apart for what comes before an example's first continuous token: where
    # the decoder is frozen (stage I), nothing trained influences it, and no backward pass goes through it.
    row_prefix: int = 0
    row_crops: int = 10  # SigLIP crops a packed row holds
    row_images: int = 5  # images a packed row holds, where codes are made online
    rows: int = 128  # rows in a global batch
    codes: Literal["online", "offline"] = "online"  # VQ encoder in the step, or `unitoken tokenize`d
    prompt_dropout: float = 0.1  # chance that a text-to-image prompt is dropped, for guidance
    on_error: Literal["raise", "skip"] = "raise"  # a bad example stops the run, or is reported and left out
    workers: int = 0
    mix: Literal["rows", "examples"] = "rows"
    index: str = ""  # folder for length indexes; empty: beside each data set
    # Global row (`Loader.state()`) from which this mixture counts: how a run's data is changed on purpose.
    mixture_start: int = 0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one -1 takes what is left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 1000
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation; master weights stay float32
    remat: Literal["none", "dots", "qkv", "full"] = "full"  # what each layer keeps: more is faster
    scan_layers: bool = True  # one compiled layer in a loop; unrolled is faster where compiling is cheap
    attention: Literal["auto", "xla", "splash", "triton"] = "auto"  # kernel; auto: the device's fastest
    accumulate: int = 1  # parts a batch is computed in, one after another, before the update
    loss_chunk: int = 1024  # supervised positions whose logits exist at one time
    init_from: str = ""  # model directory to start from; empty: random weights
    tokenizer: str = ""  # tokenizer.json, needed where init_from is empty
    log_every: int = 10
    validate_every: int = 0
    sample_every: int = 0  # steps between images and answers in workdir/samples
    sample_count: int = 4  # how many of each
    samples: str = ""  # conversation file whose prompts and questions they are; empty: data.validation
    profile_steps: int = 0  # steps, after a few, that are traced into workdir/profile
    wandb: str = ""  # project of Weights & Biases that gets the metrics too, where wandb is installed
    save_every: int = 1000
    keep: int = 2
    # A step whose loss or gradient norm is not finite, or more than spike_sigma standard deviations above the
    # mean of the last spike_window steps taken, changes nothing; its examples go to skipped.jsonl. After
    # skip_limit such steps in a row the run stops.
    spike_window: int = 128
    spike_sigma: float = 6.0  # 0: only what is not finite is left out
    skip_limit: int = 10


@dataclasses.dataclass(frozen=True)
class VQTrainConfig:
    """Training of the image tokenizer alone."""

    steps: int = 1000
    batch: int = 64
    learning_rate: float = 1e-3
    autoencoder_steps: int = 200  # first steps without quantisation, before the codebook is filled
    revive_every: int = 50  # steps between replacing codes that went unused
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()


def to_dict(config) -> dict:
    """The dataclass as nested plain dicts and lists, ready for json.dump."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


# What the keys of model directories of format 1, and of config files written then, are called now.
RENAMED_KEYS = {
    "picture_size": "image_size",
    "picture_labels": "image_labels",
    "picture_lead": "text_before_image",
    "soft_in_answers": "features_in_answers",
    "row_pictures": "row_images",
    "pictures": "images",
}


def from_dict(cls, values: dict, where: str = ""):
    """Builds dataclass `cls` from nested plain values, defaults where silent.

    Raises ValueError naming the dotted key for an unknown key (with its new name, or the nearest known
    one) or a wrong type.
    """
    hints = typing.get_type_hints(cls)
    unknown = [key for key in values if key not in hints]
    if unknown:
        renamed = RENAMED_KEYS.get(unknown[0])
        if renamed in hints:
            raise ValueError(f"config key {where}{unknown[0]} is now called {where}{renamed}")
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f" Did you mean {where}{near[0]}?" if near else f" Known here: {', '.join(hints)}."
        raise ValueError(f"unknown config key {where}{unknown[0]}.{hint}")
    return cls(**{key: _convert(hints[key], value, where + key) for key, value in values.items()})


def _convert(hint, value, where: str):
    """`value` from JSON as type `hint`; raises ValueError naming `where`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if hasattr(value, "items"):
            return from_dict(hint, dict(value.items()), where + ".")
    elif origin is tuple:
        if isinstance(value, list | tuple):
            inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(inner) == len(value):
                return tuple(
                    _convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(inner, value))
                )
    elif origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"config key {where} is {value!r}; allowed: {', '.join(map(repr, arguments))}")
    elif origin in (typing.Union, types.UnionType):
        return value
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise ValueError(f"config key {where} is {value!r}; expected {expected}")
