"""An example: one conversation as a sequence of tokens, with what goes where on the device."""

import dataclasses
from typing import NamedTuple

import numpy as np

from unitoken_jax.batch import NO_INDEX


class ExampleSize(NamedTuple):
    """What an example takes of a row."""

    tokens: int
    crops: int  # SigLIP crops
    images: int  # images whose codes are made on the device
    suffix: int  # tokens from the first continuous one on


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One sequence; fields as in `batch.py`, without the row dimension. Indices count within the example.

    tokens, labels, image_feature_index, code_index int32[n]; crops uint8[C, S, S, 3]; images
    uint8[I, H, W, 3], empty unless codes are made on the device; `tokens` and `labels` then hold code 0 where
    the codes will go.
    """

    tokens: np.ndarray
    labels: np.ndarray
    image_feature_index: np.ndarray
    code_index: np.ndarray
    crops: np.ndarray
    images: np.ndarray

    @property
    def lengths(self) -> ExampleSize:
        suffix = len(self.tokens) - self.prefix
        return ExampleSize(len(self.tokens), len(self.crops), len(self.images), suffix)

    @property
    def prefix(self) -> int:
        """Tokens before the first continuous one: nothing that stage I trains has a part in them."""
        continuous = self.image_feature_index != NO_INDEX
        return int(np.argmax(continuous)) if continuous.any() else len(self.tokens)
