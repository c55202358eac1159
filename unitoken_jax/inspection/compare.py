"""A model directory against what PyTorch computed from the same weights, layer by layer.

The record is made by launch/record_torch.py on a machine with PyTorch: the inputs, every layer's output, and
what comes out at the end. Each layer runs twice here: alone, on the record's input to it, which shows where a
difference comes from; and in sequence, on our own outputs, which shows where it leads.
"""

import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.checkpoint.model_directory import open_model
from unitoken_jax.checkpoint.param_store import StoredParams
from unitoken_jax.model.decoder import DecoderBlock
from unitoken_jax.model.layers import LayerNorm, RMSNorm, rope_table
from unitoken_jax.model.siglip import Siglip, SiglipBlock

KEYS = {
    "decoder": ("tokens", "states", "hidden", "logits"),
    "siglip": ("image", "states", "features"),
}


def compare(model: str | os.PathLike, record: str | os.PathLike) -> list[str]:
    """Lines of a table: for each layer the largest difference, in units of the record's root mean square.

    Computed in float32, one layer's weights in memory at a time. ValueError where the record is none, or of
    another model's shapes.
    """
    config, params, _, _ = open_model(model)
    with np.load(record, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    networks = [
        network for network, keys in KEYS.items() if all(f"{network}/{key}" in arrays for key in keys)
    ]
    if not networks:
        raise ValueError(
            f"{record} holds no record of a decoder or SigLIP: make it with launch/record_torch.py"
        )
    lines = [f"{'largest difference / root mean square of':<44}{'alone':>10}{'in sequence':>13}"]
    for network in networks:
        if network not in params.tree:
            raise ValueError(f"{model} has no {network}, which {record} has")
        recorded, sizes = {key: arrays[f"{network}/{key}"] for key in KEYS[network]}, getattr(config, network)
        states = recorded["states"].shape
        if states[0] != sizes.depth + 1 or states[-1] != sizes.width:
            raise ValueError(
                f"{record}: {network}/states is {states}; the model has {sizes.depth} layers of width "
                f"{sizes.width}: it is another model's record"
            )
        with jax.default_matmul_precision("highest"):
            for name, alone, running in _TABLES[network](sizes, params, recorded):
                lines.append(f"{network + ': ' + name:<44}{alone:>10.1e}{running:>13.1e}")
    return lines


def _difference(value: jax.Array, expected: np.ndarray) -> float:
    """The largest difference of two arrays, in units of the root mean square of `expected`."""
    scale = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
    return float(np.max(np.abs(np.asarray(value, np.float32) - expected)) / max(scale, 1e-12))


def _read(params: StoredParams, prefix: str, layer: int | None = None) -> dict:
    """The parameters below `prefix` in float32; of a stack, those of one `layer`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params.read_below(prefix, layer))


def _layers(
    params: StoredParams, prefix: str, states: np.ndarray, block: Callable
) -> Generator[tuple[str, float, float], None, jax.Array]:
    """Rows of the table, (name, difference alone, difference in sequence), for the stacked layers below
    `prefix`; returns the last state of the sequence.

    `states` float32[L + 1, T, D] are the recorded input of the first layer and every layer's output.
    """
    running = jnp.asarray(states[0])
    for i in range(len(states) - 1):
        weights = _read(params, prefix, i)
        running = block(weights, running)
        alone = block(weights, jnp.asarray(states[i]))
        yield f"layer {i}", _difference(alone, states[i + 1]), _difference(running, states[i + 1])
    return running


def _decoder(config, params, record) -> Iterator[tuple[str, float, float]]:
    """Rows of the table for the decoder, from embeddings to logits."""
    states = record["states"]
    tokens = record["tokens"]
    positions = jnp.arange(len(tokens))[None]
    rope, segments = rope_table(positions, config.head_dim, config.rope_theta), jnp.ones_like(positions)

    @jax.jit
    def block(weights, x):
        x, _ = DecoderBlock(config).apply({"params": weights}, x[None], rope, segments, positions, True)
        return x[0]

    embedded = params.read("decoder/embed/embedding")[tokens].astype(np.float32)
    yield "embeddings", _difference(embedded, states[0]), _difference(embedded, states[0])
    running = yield from _layers(params, "decoder/layers", states, block)
    scale = {"params": _read(params, "decoder/norm")}
    norm = RMSNorm(config.norm_eps)
    alone, running = (jnp.asarray(norm.apply(scale, x)) for x in (jnp.asarray(states[-1]), running))
    yield "final norm", _difference(alone, record["hidden"]), _difference(running, record["hidden"])
    head, last = _read(params, "decoder/lm_head")["kernel"], len(record["logits"])
    alone, running = (x[-last:] @ head for x in (jnp.asarray(record["hidden"]), running))
    yield "logits", _difference(alone, record["logits"]), _difference(running, record["logits"])
    differ = [np.mean(x.argmax(-1) != record["logits"].argmax(-1)) for x in (alone, running)]
    yield "share of likeliest tokens that differ", *differ


def _siglip(config, params, record) -> Iterator[tuple[str, float, float]]:
    """Rows of the table for SigLIP, from its first layer's input to its features."""
    states = record["states"]

    @jax.jit
    def block(weights, x):
        return SiglipBlock(config).apply({"params": weights}, x[None])[0][0]

    yield from _layers(params, "siglip/layers", states, block)
    weights = _read(params, "siglip")
    alone: Any = LayerNorm(config.norm_eps).apply({"params": weights["norm"]}, jnp.asarray(states[-1]))
    whole = jax.jit(Siglip(config).apply)({"params": weights}, record["image"][None])[0]
    yield (
        "features (from pixels)",
        _difference(alone, record["features"]),
        _difference(whole, record["features"]),
    )


_TABLES = {"decoder": _decoder, "siglip": _siglip}
