"""Adapters as after training, for the small models."""

import pathlib

import numpy as np
from flax import traverse_util
from flax.core import meta

from unitoken_jax.checkpoint.adapter import Base, save_adapter
from unitoken_jax.config import LoraConfig, ModelConfig
from unitoken_jax.model.init import abstract_params
from unitoken_jax.model.lora import PAIR


def trained_params(
    config: ModelConfig, lora: LoraConfig, whole: tuple[str, ...] = (), seed: int = 0
) -> dict[str, np.ndarray]:
    """Random pairs of `lora`, and random values of the parameters `whole`, a QK-norm's scales near 1."""
    rng = np.random.default_rng(seed)
    flat = traverse_util.flatten_dict(meta.unbox(abstract_params(config, lora)), sep="/")
    return {
        path: (rng.normal(size=leaf.shape) * 0.1 + path.endswith("scale")).astype(np.float32)
        for path, leaf in flat.items()
        if PAIR.search(path) or path in whole
    }


def save_trained(
    path: pathlib.Path,
    model: pathlib.Path,
    config: ModelConfig,
    lora: LoraConfig,
    whole: tuple[str, ...] = (),
) -> pathlib.Path:
    """The adapter folder `path` of `trained_params` over the model directory `model`."""
    save_adapter(path, trained_params(config, lora, whole), lora, Base.of(model))
    return path
