"""What a user may say of a fine-tuning run; whatever is left out is chosen (`choose.py`)."""

import dataclasses
from typing import Annotated, Literal

from unitoken_jax.setting_ranges import Checked, Count, Decay, Natural, Positive, Range, Seed

LORA_NETWORKS = ("decoder", "head", "siglip", "adapter")  # whose kernels can have LoRA pairs
WHOLE_NETWORKS = ("adapter", "siglip", "norms")  # what can be trained whole beside pairs


@dataclasses.dataclass(frozen=True)
class FinetuneOptions(Checked):
    """Settings of `unitoken finetune`; None: chosen from data, model and machine."""

    data: tuple[str, ...]  # Conversation files, image folders, ... (`SourceConfig.path`).
    model: str  # The model directory to start from.
    validation: tuple[str, ...] = ()  # Held-out data; empty: a share of the data's own rows.
    captions: Literal["describe", "draw", "both"] = "both"  # What captions of image folders teach.
    skip: bool = False  # Whether bad rows are left out; else the first one stops everything.
    full: bool = False  # Whether all parameters train, in place of LoRA pairs.
    rank: Count = 16  # Of the pairs.
    alpha: Positive | None = None  # None: twice the rank.
    rslora: bool = False  # Whether pairs are scaled by alpha / sqrt(rank).
    dropout: Decay = 0.0  # Of the pairs' inputs.
    lora_on: tuple[str, ...] | None = None  # Of LORA_NETWORKS.
    train: tuple[str, ...] = ()  # Of WHOLE_NETWORKS, trained whole beside the pairs.
    frozen_dtype: Literal["stored", "bfloat16", "int8", "int4"] | None = None  # What the base is held in.
    steps: Count | None = None
    epochs: Positive | None = None
    learning_rate: Positive | None = None
    examples: Count | None = None  # A step's, about.
    held_out: Annotated[float, Range(0, 1, below=True)] | None = None  # Share of the rows set apart.
    sample_every: Natural | None = None  # Steps between held-out answers and images; 0: never.
    rehearsal: Natural | None = None  # Images that it learns to answer about as before; 0: none.
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("lora_on", LORA_NETWORKS), ("train", WHOLE_NETWORKS)):
            for value in getattr(self, name) or ():
                if value not in known:
                    raise ValueError(f"{option(name)} {value}: no such network; expected {', '.join(known)}")
        if not self.data:
            raise ValueError("--data: name at least one file or folder to learn from")
        if self.full and (self.train or self.lora_on is not None):
            raise ValueError("--full trains everything: leave out --lora-on and --train")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("--steps and --epochs say the same thing: give one of them")


def option(name: str) -> str:
    """How the command line calls a field of FinetuneOptions."""
    return "--" + name.replace("_", "-")
