"""Every setting, as frozen dataclasses: one for each network of the model, one for each part of training.

Defaults are UniToken-7B's published values. A config file states only what differs (`from_dict`), and an
unknown key is an error that suggests the nearest one. Plain Python: no jax, no ml_collections.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from unitoken_jax.setting_ranges import (
    Checked,
    Count,
    Decay,
    Fraction,
    Layers,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    SettingError,
)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class SiglipConfig(Checked):
    """SigLIP, the vision tower that makes continuous image features. Defaults are SO400M/14-384."""

    image_size: Count = 384  # Side of the square crops it reads, in pixels.
    patch_size: Count = 14  # Side of the square patches that become one feature each, in pixels.
    width: Count = 1152  # Numbers in a feature.
    depth: Layers = 27  # Transformer layers.
    heads: Count = 16  # Attention heads of a layer.
    mlp: Count = 4304  # Width of a layer's MLP between its two products.
    norm_eps: NonNegative = 1e-6  # Added to the variance in every LayerNorm.

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_multiple("width", of="heads")
        if self.image_size < self.patch_size:
            raise SettingError(
                "patch_size", f"is {self.patch_size}; expected {self.image_size} (image_size) at most"
            )

    @property
    def grid(self) -> int:
        """Patches along a side; leftover pixels are dropped (384 / 14 -> 27)."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches, and so features, of a crop."""
        return self.grid**2


@dataclasses.dataclass(frozen=True)
class VQConfig(Checked):
    """The VQ-GAN, which turns images into discrete codes and back. Defaults are Chameleon's.

    Fields correspond to those of `ddconfig` in its vqgan.yaml.
    """

    codes: Count = 8192  # Entries of the codebook.
    embed_dim: Count = 256  # Numbers in a codebook entry.
    latent_channels: Count = (
        256  # Channels between the encoder or decoder and the codebook's 1x1 convolutions.
    )
    base_channels: Count = 128  # Channels at full resolution, which the multipliers below multiply.
    channel_multipliers: tuple[Count, ...] = (
        1,
        1,
        2,
        2,
        4,
    )  # One for each level; each level but one halves the side.
    res_blocks: Annotated[int, Range(0, 100)] = (
        2  # Residual blocks at each level of the encoder; the decoder has one more.
    )
    resolution: Count = 512  # Side in pixels at which `attention_resolutions` are counted.
    attention_resolutions: tuple[int, ...] = ()  # Sides of feature maps whose levels have attention.
    mid_attention: bool = True  # Whether there is attention at the lowest resolution.
    # Groups of every GroupNorm; 0: no normalisation. Over a small image, mostly background, normalisation
    # hides what little there is.
    norm_groups: Natural = 32
    commitment: NonNegative = 0.25  # Weight of the loss that keeps the encoder's outputs near their codes.

    @property
    def stride(self) -> int:
        """Side in pixels of the square that one code stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Checked):
    """Chameleon's decoder. Defaults are 7B; the 34B model has qk_norm_shards 4 and norm "output"."""

    vocab_size: Count = 65536  # Token ids: text, control tokens and image codes.
    width: Count = 4096  # Numbers in a token's embedding.
    depth: Layers = 32  # Transformer layers.
    heads: Count = 32  # Query heads of a layer.
    kv_heads: Count = 32  # Key and value heads of a layer; fewer than `heads` is grouped-query attention.
    mlp: Count = 11008  # Width of a layer's gated MLP.
    norm_eps: NonNegative = 1e-5  # Added to the mean square in every RMSNorm.
    rope_theta: Positive = 10000.0  # Base of the rotary position embedding's wavelengths.
    qk_norm_shards: Count = 1  # Rows of the QK LayerNorm's weights, each shared by heads / shards heads.
    norm: Literal["pre", "output"] = "pre"  # Each branch normalises its input (7B) or its output (34B).
    dropout: Decay = 0.05  # Probability, in training, of dropping a number of a branch's output.

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_multiple("width", of="heads")
        self._require_multiple("heads", of="kv_heads")
        self._require_multiple("kv_heads", of="qk_norm_shards")

    @property
    def head_dim(self) -> int:
        """Numbers in a head's query, key or value."""
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class SequenceConfig(Checked):
    """How images and turns become one sequence; `published_sequence` is the released code's variant."""

    # Which tokens stand for an image: codes and features, codes alone, or features alone.
    encoding: Literal["unified", "discrete", "continuous"] = "unified"
    # Features of an overview and of tiles in the image's own proportions, or of the overview alone.
    resolution: Literal["anyres", "base"] = "anyres"
    # Tiles (rows, columns) that any-resolution images may be cut into; the first of equals is taken.
    grids: tuple[tuple[Count, Count], ...] = ((2, 1), (1, 2), (2, 2), (3, 1), (1, 3))
    image_size: tuple[int, int] = (512, 512)  # Height and width in pixels of the crop that codes are made of.
    size_unit: Count = 32  # Pixels in which the two size tokens of an image count.
    crop: Literal["center", "random"] = "center"  # Where that crop is taken in training.
    supervise_sep: bool = (
        False  # Whether every SEP is learnt, also those in prompts, as in the released code.
    )
    # Whether images in answers have continuous features too, as in the released code.
    features_in_answers: bool = False
    # Which tokens of an image in an answer are learnt: all of begin ... end, or its codes alone.
    image_labels: Literal["all", "codes"] = "all"
    # Text between a prompt and begin-of-image when generating; the released code has a space there.
    text_before_image: str = ""


def published_sequence(**changes: Any) -> SequenceConfig:
    """The released code's variant: SEP supervised everywhere, features also in answers."""
    return SequenceConfig(supervise_sep=True, features_in_answers=True, text_before_image=" ", **changes)


@dataclasses.dataclass(frozen=True)
class GenerationConfig(Checked):
    """Sampling defaults that a model directory carries; every call can override them."""

    guidance: Positive = 3.0  # Scale of classifier-free guidance for images; 1 is none.
    top_k: Count = 4000  # Most likely image codes that one is drawn from.
    temperature: NonNegative = 1.0  # Logits are divided by it before an image code is drawn.
    max_answer_tokens: Count = 512  # Longest answer in tokens.
    # Tokens that one decoding step reads while an image is drawn: the same image in fewer steps; 0 is plain
    # decoding. None: 16 on an accelerator, where a step's time goes into reading the weights; 0 on a CPU.
    speculate: Natural | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checked):
    """Everything that a model directory's config.json holds."""

    siglip: SiglipConfig = SiglipConfig()
    vq: VQConfig = VQConfig()
    decoder: DecoderConfig = DecoderConfig()
    sequence: SequenceConfig = SequenceConfig()
    generation: GenerationConfig = GenerationConfig()


@dataclasses.dataclass(frozen=True)
class ParameterGroup(Checked):
    """Parameters that train at one learning rate: those in whose path `re.search` finds `pattern`."""

    pattern: str  # A regular expression for paths such as "decoder/lm_head/kernel".
    learning_rate: NonNegative  # Peak of the schedule; 0 freezes the group.


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    """The optimizer and its schedule. A parameter belongs to the first group that matches; without one it is
    frozen.

    "muon" is for training from random weights: its matrices get orthogonal updates of AdamW's size, the rest
    AdamW. The paper fine-tunes with "adamw".
    """

    name: Literal["adamw", "muon"] = "adamw"
    groups: tuple[ParameterGroup, ...] = ()  # What is trained, and how fast.
    b1: Decay = 0.9  # Decay of the first moment, the gradients' running mean.
    b2: Decay = 0.95  # Decay of the second moment, the squared gradients' running mean.
    moment_dtype: Literal["float32", "bfloat16"] = "float32"  # What the first moment is stored in.
    eps: NonNegative = 1e-8  # Added to the square root of the second moment.
    weight_decay: NonNegative = 0.1  # Decoupled weight decay of every trained parameter.
    newton_schulz_steps: Count = 5  # Of "muon": iterations that make an update orthogonal.
    clip_norm: Positive = 4.0  # Global norm that larger gradients are scaled down to.
    warmup_fraction: Fraction = 0.01  # Share of all steps in which the rates rise linearly from 0.
    z_loss: NonNegative = 1e-5  # Weight of logsumexp(logits)^2, which is added to the cross-entropy.


@dataclasses.dataclass(frozen=True)
class LoraConfig(Checked):
    """Low-rank pairs beside frozen kernels (LoRA, arXiv 2106.09685): y = x W + scale (x A) B.

    They train where a parameter group finds them, as `lora_[ab]$` does; the run then leaves an adapter folder
    in place of a model directory.
    """

    rank: Natural = 0  # Columns of A and rows of B; 0: no pairs.
    alpha: Positive = 32.0  # The scale is alpha / rank.
    rslora: bool = False  # Whether it is alpha / sqrt(rank) instead, which suits high ranks (2312.03732).
    dropout: Decay = 0.0  # Probability, in training, of dropping a number of A's input.
    targets: str = "^decoder/layers/"  # A regular expression for the paths of the kernels that get a pair.

    @property
    def scale(self) -> float:
        """What a pair's product is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else max(self.rank, 1))


@dataclasses.dataclass(frozen=True)
class SourceConfig(Checked):
    """One data set of conversations; all paths may be local or URLs that etils opens (gs://...).

    kind "json": a JSON or JSONL file; "array_record": files (a folder, a pattern) whose records are JSON
    conversations; "tfds": a prepared data set's folder or a name such as "chartqa:1.0.0"; "image_folder": a
    folder of images with captions or questions in a CSV or JSONL file, or that file (data/image_folder.py);
    "auto": whichever of them the path looks like.

    `held_out` sets a share of the rows apart, chosen by what each row says (data/held_out.py): one source in
    `data.sources` with part "training", and one in `data.validation` with the same path, the same share and
    part "held_out", have no row in common.
    """

    path: str = ""  # The file, folder, pattern or name, as `kind` says.
    weight: NonNegative = 1.0  # Share of the mixture, in what `DataConfig.mix` says.
    images: str = ""  # Folder, or tar shards "x/*.tar", of relative image paths; empty: the file's folder.
    codes: str = ""  # Folder of VQ codes made beforehand; empty: beside the data.
    ratio: NonNegative = 1.0  # Share of the set's examples that is used at all, always the same ones.
    held_out: Fraction = 0.0  # Share of the set's rows that is set apart for validation.
    part: Literal["all", "training", "held_out"] = "all"  # Which rows this source has: see above.
    kind: Literal["auto", "json", "array_record", "tfds", "image_folder"] = "auto"
    captions: Literal["describe", "draw", "both"] = "both"  # What the captions of an image folder teach.
    split: str = "train"  # Split of a TFDS data set; slices too ("train[:50%]"). Folder in an image folder.
    mapping: str = ""  # Function from TFDS example to conversation: "package.module:name" or "file.py:name".

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part == "held_out" and not self.held_out:
            raise SettingError(
                "held_out", "is 0, but part is 'held_out'; expected the share that is set apart"
            )


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """The input pipeline, from data sets to packed rows.

    `mix` says what weights are shares of: "rows" (each source's examples share rows among themselves) or
    "examples" (those of all sources are packed together, which fills rows better and keeps proportions
    counted in samples, as the paper's Table 1 does).
    """

    sources: tuple[SourceConfig, ...] = ()  # The data sets that are trained on.
    validation: tuple[
        SourceConfig, ...
    ] = ()  # Those that the loss is measured on every `validate_every` steps.
    row_length: Count = 5120  # Tokens that a packed row holds.
    # The first tokens of a row are set apart for what comes before an example's first continuous token: where
    # the decoder is frozen (stage I), nothing trained influences it, and no backward pass goes through it.
    row_prefix: Natural = 0
    row_crops: Natural = 10  # SigLIP crops that a packed row holds.
    row_images: Natural = 5  # Images that a packed row holds, where codes are made online.
    rows: Count = 128  # Rows in a global batch.
    # Whether the training step runs the VQ encoder, or `unitoken tokenize` made the codes beforehand.
    codes: Literal["online", "offline"] = "online"
    prompt_dropout: Fraction = 0.1  # Probability of dropping a text-to-image prompt, which guidance needs.
    on_error: Literal["raise", "skip"] = "raise"  # A bad example stops the run, or is reported and left out.
    workers: Natural = 0  # Processes that make rows; 0: a thread of the training process does.
    mix: Literal["rows", "examples"] = "rows"  # What the sources' weights are shares of; see above.
    index: str = ""  # Folder for length indexes; empty: beside each data set.
    # Global row (`Loader.state()`) from which this mixture counts: how a run's data is changed on purpose.
    mixture_start: Natural = 0


@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked):
    """Devices along each axis of the mesh; one of them may be -1, which takes all that are left."""

    data: int = 1  # Copies of the parameters, each for its own rows of the batch.
    fsdp: int = -1  # Shards of parameters and optimizer state, each also for its own rows of the batch.
    tensor: int = 1  # Shards of every layer's heads and MLP, which work on the same rows.


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """The training loop: how long it runs, how a step is computed, and what it writes when."""

    steps: Count = 1000  # Optimizer steps of the whole run.
    seed: Seed = 0  # Of initial weights, the order of the data and dropout.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # Of the computation; master weights stay float32.
    # What frozen parameters are held in: as they are stored, or the decoder's kernels in 8 or 4 bits (QLoRA).
    frozen_dtype: Literal["stored", "bfloat16", "int8", "int4"] = "stored"
    # What each layer keeps for its backward pass, the rest is computed again: keeping more is faster.
    remat: Literal["none", "dots", "qkv", "full"] = "full"
    scan_layers: bool = True  # One compiled layer in a loop; unrolled is faster where compiling is cheap.
    attention: Literal["auto", "xla", "splash", "triton"] = "auto"  # Kernel; auto: the device's fastest.
    accumulate: Count = 1  # Parts that a batch is computed in, one after another, before the update.
    loss_chunk: Count = 1024  # Supervised positions whose logits exist at one time.
    init_from: str = ""  # Model directory to start from; empty: random weights.
    tokenizer: str = ""  # Path of a tokenizer.json, needed where init_from is empty.
    log_every: Count = 10  # Steps between points of TensorBoard and wandb; metrics.jsonl has every step.
    validate_every: Natural = 0  # Steps between measurements of the validation loss; 0: never.
    sample_every: Natural = 0  # Steps between images and answers in workdir/samples; 0: never.
    sample_count: Natural = 4  # How many images, and how many answers, each time.
    samples: str = ""  # Conversation file whose prompts and questions they are; empty: data.validation.
    profile_steps: Natural = 0  # Steps, after the first few, that are traced into workdir/profile; 0: none.
    wandb: str = ""  # Project of Weights & Biases that gets the metrics too; empty: none.
    save_every: Count = 1000  # Steps between checkpoints.
    keep: Count = 2  # Newest checkpoints that are kept.
    keep_best: bool = False  # Whether the run's model is that of the smallest validation loss, not the last.
    # A step whose loss or gradient norm is not finite, or more than spike_sigma standard deviations above the
    # mean of the last spike_window steps taken, changes nothing; its examples go to skipped.jsonl. After
    # skip_limit such steps in a row the run stops.
    spike_window: Annotated[int, Range(2)] = 128
    spike_sigma: NonNegative = 6.0  # 0: only what is not finite is left out.
    skip_limit: Count = 10


@dataclasses.dataclass(frozen=True)
class VQTrainConfig(Checked):
    """Training of the image tokenizer alone."""

    steps: Count = 1000  # Optimizer steps of the whole run.
    batch: Count = 64  # Images in a batch.
    learning_rate: NonNegative = 1e-3  # Peak of the schedule.
    autoencoder_steps: Natural = 200  # First steps, which do not quantise, before the codebook is filled.
    revive_every: Count = 50  # Steps between replacing codes that went unused.
    seed: Seed = 0  # Of initial weights and the order of the images.


@dataclasses.dataclass(frozen=True)
class SiglipTrainConfig(Checked):
    """Training of SigLIP alone, on images whose regions are labelled."""

    steps: Count = 1000  # Optimizer steps of the whole run.
    batch: Count = 32  # Images in a batch.
    learning_rate: NonNegative = 4e-3  # Peak of the schedule.
    weight_decay: NonNegative = 0.05  # Decoupled weight decay.
    seed: Seed = 0  # Of the order of the images and how they are changed.


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """One training run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as nested plain dicts and lists, ready for json.dump."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> dict[str, tuple]:
    """{dotted key: (value in `theirs`, value in `ours`)} of what differs in two trees of plain values.

    An absent key counts as None. `prefix` ("data.") stands before the keys of the result.
    """
    differing: dict[str, tuple] = {}
    for key in dict.fromkeys((*ours, *theirs)):
        values = theirs.get(key), ours.get(key)
        nested = [isinstance(value, Mapping) for value in values]
        if any(nested) and all(is_tree or value is None for is_tree, value in zip(nested, values)):
            differing |= differences(values[0] or {}, values[1] or {}, f"{prefix}{key}.")
        elif values[0] != values[1]:
            differing[f"{prefix}{key}"] = values
    return differing


# What the keys of model directories of format 1, and of config files written then, are called now.
RENAMED_KEYS = {
    "picture_size": "image_size",
    "picture_labels": "image_labels",
    "picture_lead": "text_before_image",
    "soft_in_answers": "features_in_answers",
    "row_pictures": "row_images",
    "pictures": "images",
}


def from_dict(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Builds the dataclass `cls` from nested plain values, defaults where they are silent.

    `prefix` ("data.") stands before the keys that an error names. Raises ValueError naming the dotted key for
    an unknown key (with its new name, or the nearest known one) or a wrong type.
    """
    hints = typing.get_type_hints(cls)
    unknown = [key for key in values if key not in hints]
    if unknown:
        renamed = RENAMED_KEYS.get(unknown[0])
        if renamed in hints:
            raise ValueError(f"config key {prefix}{unknown[0]} is now called {prefix}{renamed}")
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f" Did you mean {prefix}{near[0]}?" if near else f" Known here: {', '.join(hints)}."
        raise ValueError(f"unknown config key {prefix}{unknown[0]}.{hint}")
    converted = {key: _convert(hints[key], value, prefix + key) for key, value in values.items()}
    try:
        return cls(**converted)
    except SettingError as error:
        raise SettingError(prefix + error.key, error.problem) from None


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` from JSON or a config file as type `hint`; raises ValueError naming `key`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    is_mapping = hasattr(value, "items")
    problem = f"config key {key} is {value!r}"
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        if isinstance(value, hint):
            return value
        if is_mapping:
            return from_dict(hint, dict(value.items()), key + ".")
        names = ", ".join(field.name for field in dataclasses.fields(hint))
        raise ValueError(f"{problem}; expected {hint.__name__}: {key} is a section; set one of {names}")
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{problem}; allowed: {', '.join(map(repr, arguments))}")
    if origin in (typing.Union, types.UnionType):  # T | None is the only union there is
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _convert(inner, value, key)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(
                _convert(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value))
            )
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif origin is None and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    hint_text = f": {key} is a value, not a section" if is_mapping and value else ""
    raise ValueError(f"{problem}; expected {expected}{hint_text}")
