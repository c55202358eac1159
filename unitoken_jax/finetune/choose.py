"""What a fine-tuning run needs, chosen from the data's sizes, the model's and the machine's memory.

Every choice says why it was made and which option changes it, and together they are one `Config`: the run is
an ordinary run of `train`, and its config file repeats it.
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from unitoken_jax.checkpoint.model_directory import open_model
from unitoken_jax.config import (
    Config,
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ParameterGroup,
    SourceConfig,
    TrainConfig,
)
from unitoken_jax.config_file import with_overrides
from unitoken_jax.data.codes import codes_name
from unitoken_jax.data.held_out import part_rows, possible_shares
from unitoken_jax.data.index import Index, open_index
from unitoken_jax.data.readers import resolve_source
from unitoken_jax.data.size_summary import SizeSummary, summarize_sizes
from unitoken_jax.finetune import rehearsal
from unitoken_jax.finetune.options import FinetuneOptions
from unitoken_jax.planning.plan import Plan, plan
from unitoken_jax.sequence.example import ExampleSize
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage.host_memory import free_host_bytes
from unitoken_jax.storage.paths import absolute, as_path
from unitoken_jax.train.optimizer import NEVER_TRAINED

HELD_OUT = 0.05  # share of the rows set apart; of few rows as much as it takes to have one
ROW_TOKENS = 512  # several short examples share a row of about so many
HOST_SHARE = 0.8  # of the free memory of a machine without an accelerator

_LORA_RATE, _FULL_RATE = 1e-4, 1e-5  # at a width of 4096; narrower models take more
_WHOLE_SHARE = 0.1  # of the pairs' rate, for what trains whole beside them
_SEEN = 2000  # examples that are seen in all, where that is between one epoch and MAX_EPOCHS
MAX_EPOCHS = 50
REHEARSED = 2.0  # examples of a rehearsal beside each of the data
_SMALL_HEAD = 2**24  # numbers in lm_head
_REACHED = 0.5  # of a large product's speed, what a step of a small model reaches
CODES = "codes"  # folder of the run's VQ codes


class Choice(NamedTuple):
    """One line of what was chosen: what for, the value, why, and the options that change it."""

    name: str
    value: str
    reason: str
    options: str


@dataclasses.dataclass(frozen=True)
class Choices:
    """A fine-tuning run before it starts: its settings, why they are so, and its step as it is compiled."""

    config: Config
    lines: tuple[Choice, ...]
    plan: Plan


@dataclasses.dataclass(frozen=True)
class _Data:
    """The measured data: sources to learn from and to validate on, and the sizes of the former."""

    sources: tuple[SourceConfig, ...]
    validation: tuple[SourceConfig, ...]
    sizes: tuple[SizeSummary, ...]
    held_out_rows: int
    held_out: float
    rehearsal: ExampleSize | None = None  # The largest of what is learnt beside them.

    def with_rehearsal(
        self, folder: pathlib.Path, codes: pathlib.Path, images: int, largest: ExampleSize
    ) -> "_Data":
        """With REHEARSED examples of the rehearsal in `folder` beside each of the data."""

        def source(name: str) -> SourceConfig:
            path = folder / name
            return SourceConfig(path=str(path), codes=str(codes / codes_name(path)), kind="json")

        training = dataclasses.replace(source(rehearsal.FILE), weight=REHEARSED * len(self.sources))
        held_out = self.validation and images >= rehearsal.HELD_OUT_ONE_IN
        return dataclasses.replace(
            self,
            sources=(*self.sources, training),
            validation=(*self.validation, *([source(rehearsal.HELD_OUT)] if held_out else [])),
            rehearsal=largest,
        )

    @property
    def rows(self) -> int:
        """Examples to learn from."""
        return sum(sizes.rows for sizes in self.sizes)

    def mean(self, field: str) -> float:
        """The mean of a field of ExampleSize over all examples."""
        return sum(getattr(sizes.total, field) for sizes in self.sizes) / self.rows

    def largest(self, field: str) -> int:
        """Its largest value, a rehearsal's too."""
        sizes = [sizes.largest for sizes in self.sizes] + [self.rehearsal] * bool(self.rehearsal)
        return max(getattr(size, field) for size in sizes)


def choose(options: FinetuneOptions, out: pathlib.Path, overrides: Sequence[str] = ()) -> Choices:
    """Measures the data, chooses all that `options` leave open, and compiles the training step.

    Nothing is written but length indexes beside the data. `overrides` are `--config.a.b=c`, and count last.
    Raises what is wrong with the data (RowError, by file and line), with the model directory, or with both
    together, and ValueError where no way is found that fits the machine's memory.
    """
    model, stored, tokenizer, manifest = open_model(options.model)
    data = _measure(options, model, tokenizer, out / CODES)
    images = options.rehearsal
    if images is None:
        images = rehearsal.default_images(model, manifest, stored.tree)
    if images:
        largest = rehearsal.largest_example(model, tokenizer, manifest)
        data = data.with_rehearsal(out / rehearsal.FOLDER, out / CODES, images, largest)
    drafted, lines = _draft(options, model, data)
    if images:
        reason = "what it knows, so that it forgets less"
        lines.append(Choice("rehearsal", f"{images} images", reason, "--rehearsal"))
    drafted = with_overrides(drafted, overrides)
    config, fitted = _fit(drafted, options, stored.shapes)
    settings = config.train
    if (settings.remat, settings.accumulate) != ("none", 1):
        value = f"remat {settings.remat}, {settings.accumulate} parts a step"
        lines.append(Choice("memory", value, "what fits", "--config.train.remat, --config.train.accumulate"))
    return Choices(config, tuple(lines), fitted)


def _measure(
    options: FinetuneOptions, model: ModelConfig, tokenizer: Tokenizer, codes: pathlib.Path
) -> _Data:
    """Opens, or makes, the length indexes of all data, and parts them into training and held-out rows."""
    on_error = (lambda error: None) if options.skip else None

    def source(path: str) -> SourceConfig:
        path = str(absolute(path)) if as_path(path).exists() else path  # else a TFDS data set's name
        config = resolve_source(SourceConfig(path=path, captions=options.captions))
        return dataclasses.replace(config, codes=str(codes / codes_name(config.path)))

    indexes = {
        path: open_index(source(path), model, tokenizer, on_error=on_error)
        for path in dict.fromkeys((*options.data, *options.validation))
    }
    sources, validation, sizes, held_out_rows, used = [], [], [], 0, 0.0
    for path in options.data:
        share = _held_out_share(options, indexes[path])
        if not share:
            sources.append(source(path))
            sizes.append(summarize_sizes(indexes[path]))
            continue
        training = dataclasses.replace(source(path), held_out=share, part="training")
        rows = part_rows(indexes[path], training)
        sources.append(training)
        validation.append(dataclasses.replace(training, part="held_out"))
        sizes.append(summarize_sizes(indexes[path], rows))
        held_out_rows += summarize_sizes(indexes[path], ~rows).rows
        used = max(used, share)
    for path in options.validation:
        validation.append(source(path))
        held_out_rows += summarize_sizes(indexes[path]).rows
    return _Data(tuple(sources), tuple(validation), tuple(sizes), held_out_rows, used)


def _held_out_share(options: FinetuneOptions, index: Index) -> float:
    """The share of a data set's rows to set apart; 0 where other data is held out, or they are too few."""
    if options.held_out is not None:
        return options.held_out
    if options.validation or (possible := possible_shares(index)) is None:
        return 0.0
    smallest, largest = possible
    return min(max(HELD_OUT, smallest), largest)


def _draft(options: FinetuneOptions, model: ModelConfig, data: _Data) -> tuple[Config, list[Choice]]:
    """The run's settings, memory apart, and why they are so."""
    data_config, steps, lines = _batches(options, data)
    rate = options.learning_rate or _rate(options, model)
    cpu = jax.default_backend() == "cpu"
    share = max(1, steps // 10)
    sample_every = max(1, steps // 4) if options.sample_every is None else options.sample_every
    lora = LoraConfig()
    if options.full:
        lines.append(Choice("trained", "all parameters", "--full", "without it LoRA pairs"))
    else:
        alpha = options.alpha or 2.0 * options.rank
        networks = options.lora_on or _networks(model)
        lora = LoraConfig(options.rank, alpha, options.rslora, options.dropout, _targets(networks))
        whole = "".join(f", {name} whole" for name in options.train)
        lines.append(
            Choice(
                "trained",
                f"LoRA pairs of {' and '.join(networks)}, rank {lora.rank}, alpha {alpha:g}{whole}",
                f"the product counts {lora.scale:.3g} times",
                "--lora-on, --rank, --alpha, --rslora, --train, --full",
            )
        )
    width = f"for a decoder {model.decoder.width} wide"
    lines.append(Choice("learning rate", f"{rate:.2g}", width, "--learning-rate"))
    config = Config(
        model=model,
        data=data_config,
        lora=lora,
        optimizer=OptimizerConfig(
            groups=_groups(options, rate),
            weight_decay=0.0,
            clip_norm=1.0,
            warmup_fraction=0.05,
        ),
        train=TrainConfig(
            steps=steps,
            seed=options.seed,
            dtype="float32" if cpu else "bfloat16",
            remat="none",
            scan_layers=not (cpu and model.decoder.depth <= 8),  # unrolled compiles longer, and runs faster
            frozen_dtype=options.frozen_dtype or "stored",
            init_from=str(options.model),
            log_every=max(1, min(10, steps // 10)),
            validate_every=share if data.validation else 0,
            keep_best=bool(data.validation),
            sample_every=sample_every if data.validation else 0,
            save_every=max(20, steps // 4),
            keep=1,
        ),
    )
    return config, lines


def _batches(options: FinetuneOptions, data: _Data) -> tuple[DataConfig, int, list[Choice]]:
    """What a row and a batch hold, how many steps there are, and why."""
    examples = options.examples or (16 if data.rows < 2000 else 32 if data.rows < 20000 else 64)
    examples = min(examples, data.rows)
    mean, longest = data.mean("tokens"), data.largest("tokens")
    row_length = _round_up(max(longest, min(math.ceil(mean * examples), ROW_TOKENS)), 64)
    per_row = row_length / mean
    devices = len(jax.devices())
    rows = _round_up(max(1, round(examples / per_row)), devices)
    crops, images = (
        max(data.largest(name), math.ceil(data.mean(name) * per_row * 1.25)) for name in ("crops", "images")
    )
    seen_in_step = rows * per_row * 0.95  # rows are never quite full
    epochs = options.epochs or min(MAX_EPOCHS, max(1.0, _SEEN / data.rows))
    new_in_step = seen_in_step / (1 + (REHEARSED if data.rehearsal else 0))
    steps = options.steps or max(10, round(epochs * data.rows / new_in_step))
    config = DataConfig(
        sources=data.sources,
        validation=data.validation,
        row_length=row_length,
        row_crops=crops,
        row_images=images,
        rows=rows,
        codes="offline" if images else "online",
        mix="examples",
        on_error="skip" if options.skip else "raise",
    )
    longest_own = max(sizes.largest.tokens for sizes in data.sizes)
    held_out = f"{data.held_out:.0%} of the rows, chosen by what they say" if data.held_out else "as named"
    lines = [
        Choice(
            "data",
            f"{data.rows:,} examples",
            f"{mean:.0f} tokens on average, {longest_own} at most",
            "--data",
        ),
        Choice(
            "held out",
            f"{data.held_out_rows:,} examples",
            held_out if data.validation else "too few to set any apart",
            "--held-out, --validation",
        ),
        Choice(
            "batch",
            f"{rows} x {row_length} tokens, {crops} crops a row",
            f"about {seen_in_step:.0f} examples a step",
            "--examples",
        ),
        Choice(
            "steps",
            f"{steps:,}",
            f"{steps * new_in_step / data.rows:.1f} epochs",
            "--steps, --epochs",
        ),
    ]
    return config, steps, lines


def _round_up(number: float, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


def _rate(options: FinetuneOptions, model: ModelConfig) -> float:
    """A peak learning rate; narrower models take a larger one."""
    ratio = 4096 / model.decoder.width
    return _FULL_RATE * ratio if options.full else _LORA_RATE * math.sqrt(ratio)


def _networks(model: ModelConfig) -> tuple[str, ...]:
    """What has pairs where nothing is said: the decoder and, where it is small, its head too. Of a small
    vocabulary most pieces of words were never seen, and a frozen head cannot tell them apart."""
    head = model.decoder.width * model.decoder.vocab_size
    return ("decoder", "head") if head <= _SMALL_HEAD else ("decoder",)


def _targets(networks: Sequence[str]) -> str:
    """The pattern of the kernels of networks that get pairs."""
    prefixes = {
        "decoder": "decoder/layers/",
        "head": "decoder/lm_head/",
        "siglip": "siglip/layers/",
        "adapter": "adapter/",
    }
    return f"^({'|'.join(prefixes[name] for name in networks)})"


def _groups(options: FinetuneOptions, rate: float) -> tuple[ParameterGroup, ...]:
    """What trains, at which peak rate."""
    if options.full:
        return (NEVER_TRAINED, ParameterGroup("^(siglip|adapter|decoder)/", rate))
    patterns = {"adapter": "^adapter/", "siglip": "^siglip/", "norms": "^decoder/.*norm/(scale|bias)$"}
    whole = [ParameterGroup(patterns[name], rate * _WHOLE_SHARE) for name in options.train]
    return (ParameterGroup("/lora_[ab]$", rate), NEVER_TRAINED, *whole)


def _fit(config: Config, options: FinetuneOptions, stored: dict) -> tuple[Config, Plan]:
    """The fastest way to compute the same steps that fits the memory, with its plan. ValueError for none."""
    need, limit = 0.0, 0.0
    for candidate in _candidates(config, options):
        planned = plan(candidate, stored=stored)
        need, limit = memory_of(planned)
        if need <= limit:
            return candidate, planned
    raise ValueError(
        f"a step needs {need / 2**30:.1f} GiB of memory, and there are {limit / 2**30:.1f} GiB, with layers "
        "computed again and the base in int8 already: use fewer tokens a row (--examples 1, shorter "
        "examples), more devices, or a smaller model"
    )


def _candidates(config: Config, options: FinetuneOptions) -> Iterator[Config]:
    """`config` from the fastest to the one that takes least memory."""

    def changed(**train) -> Config:
        return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))

    for remat in ("none", "dots", "full"):
        yield changed(remat=remat)
    parts = 2
    while config.data.rows % (parts * len(jax.devices())) == 0:
        yield changed(remat="full", accumulate=parts)
        parts *= 2
    if not options.full and options.frozen_dtype is None:
        yield changed(remat="full", accumulate=parts // 2, frozen_dtype="int8")


def memory_of(planned: Plan) -> tuple[float, float]:
    """Bytes that a step needs, and what there is of them; infinity where nobody says."""
    memory = planned.memory
    need = max(memory.peak or 0, memory.arguments + (memory.temporaries or 0))
    free = free_host_bytes() if jax.default_backend() == "cpu" else None
    return need, memory.limit or (HOST_SHARE * free if free else math.inf)


def seconds_of(planned: Plan) -> float:
    """Seconds that a step will take, about: by the devices' published speeds, or on a machine without any by
    the speed of one matrix product now."""
    if planned.time is not None:
        return planned.time.estimate
    side = 1024
    x = jax.numpy.ones((side, side))
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    start, repeats = time.perf_counter(), 4
    for _ in range(repeats):
        product(x).block_until_ready()
    speed = repeats * 2 * side**3 / (time.perf_counter() - start)
    return sum(planned.flops.values()) / (speed * _REACHED)
