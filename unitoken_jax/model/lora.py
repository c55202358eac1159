"""LoRA (arXiv 2106.09685): low-rank pairs as parameters beside the kernels that they adapt.

    decoder/layers/attention/q/kernel        [L, in, out]   frozen, or a QuantizedKernel
    decoder/layers/attention/q/lora_a        [L, in, r]
    decoder/layers/attention/q/lora_b        [L, r, out]    zeros at the start
    decoder/layers/attention/q/lora_scale    [L]            never trained
    decoder/layers/attention/q/lora_dropout  [L]            never trained; in training alone

`layers.Dense` adds the pair's product wherever it finds one, in training, prefill and decoding alike. They
are scanned, sharded, frozen and saved as any other parameters.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from unitoken_jax.config import LoraConfig
from unitoken_jax.model.layers import LORA_A, LORA_B, LORA_DROPOUT, LORA_SCALE, ZEROS, Normal
from unitoken_jax.model.sharding import LogicallyPartitioned

PAIR = re.compile(rf"/({LORA_A}|{LORA_B})$")
CONSTANTS = re.compile(rf"/({LORA_SCALE}|{LORA_DROPOUT})$")  # beside a pair; nothing trains them
# The kernels that `Dense` multiplies with, and that may be quantized or trained; the VQ-GAN's are of
# convolutions.
_ADAPTABLE = re.compile(r"^(decoder/layers|decoder/lm_head|siglip/layers|adapter)/(.*/)?kernel$")


def target_kernels(paths: Iterable[str], config: LoraConfig) -> list[str]:
    """The paths of the kernels that `config.targets` finds among all parameters' `paths`, sorted.

    Raises ValueError where it is no regular expression, or finds no kernel that can have a pair.
    """
    adaptable = sorted(path for path in paths if _ADAPTABLE.match(path))
    try:
        kernels = [path for path in adaptable if re.search(config.targets, path)]
    except re.error as error:
        raise ValueError(f"lora.targets: {config.targets!r} is no regular expression: {error}") from error
    if not kernels:
        raise ValueError(
            f"lora.targets: {config.targets!r} finds no kernel that can have a LoRA pair; those that can are "
            + ", ".join(adaptable)
        )
    return kernels


def abstract_pairs(boxed_params: Mapping[str, Any], config: LoraConfig) -> dict:
    """Boxed ShapeDtypeStructs of the leaves that `config` adds to the tree `boxed_params`
    (`init.abstract_params`), as a tree of them alone. Raises as `target_kernels`."""
    boxes = traverse_util.flatten_dict(dict(boxed_params), sep="/")
    pairs = {}
    for path in target_kernels(boxes, config):
        box, module = boxes[path], path.removesuffix("kernel")
        (*stack, inputs, outputs), (*stack_names, input_name, output_name) = box.value.shape, box.names

        def leaf(init: Normal, shape=(), names=(), stack=stack, stack_names=stack_names):
            value = jax.ShapeDtypeStruct((*stack, *shape), jnp.float32)
            return LogicallyPartitioned(value, (*stack_names, *names), init=init)

        # A as `peft` draws it, uniform up to 1 / sqrt(in), by its standard deviation.
        pairs[module + LORA_A] = leaf(Normal((3 * inputs) ** -0.5), (inputs, config.rank), (input_name, None))
        pairs[module + LORA_B] = leaf(ZEROS, (config.rank, outputs), (None, output_name))
        pairs[module + LORA_SCALE] = leaf(Normal(mean=config.scale))
        if config.dropout:
            pairs[module + LORA_DROPOUT] = leaf(Normal(mean=config.dropout))
    return traverse_util.unflatten_dict(pairs, sep="/")


def whole_kernel(module: Mapping[str, Any], columns: Any = slice(None)) -> jax.Array:
    """The kernel [in, out] of a Dense's parameters, with the product of its pair where it has one; only some
    of its `columns`, where they are given. For what multiplies with it otherwise than `Dense` does."""
    kernel = jnp.asarray(module["kernel"])[:, columns]
    if LORA_A not in module:
        return kernel
    b = jnp.asarray(module[LORA_B])[:, columns]
    return kernel + module[LORA_SCALE] * (jnp.asarray(module[LORA_A]) @ b)


def merge_trees(*trees: Mapping[str, Any]) -> dict:
    """One nested tree of the leaves of several; of leaves with the same path the last tree's."""
    flat: dict[tuple, Any] = {}
    for tree in trees:
        flat |= traverse_util.flatten_dict(dict(tree))
    return traverse_util.unflatten_dict(flat)
