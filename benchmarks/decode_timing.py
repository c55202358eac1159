"""Decoding with random weights: drawn on the device, timed pass by pass, and what a pass must read by count.

gpu_generate.py and decode_speed.py measure with it. It needs jax, flax and numpy, and nothing that reads
data, images or checkpoints.
"""

import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from unitoken_jax.config import DecoderConfig, ModelConfig
from unitoken_jax.generate import decode
from unitoken_jax.generate.sampling import sample_keys
from unitoken_jax.model.decoder import unstack_layers
from unitoken_jax.model.init import abstract_params
from unitoken_jax.model.layers import Normal
from unitoken_jax.model.quantize import BITS, GROUP, QUANTIZED_KERNELS, QuantizedKernel
from unitoken_jax.model.unitoken import UniTokenModel


def make_module(model: ModelConfig, weights: str) -> UniTokenModel:
    """The network that computes with `weights`: "float32", "bfloat16", "int8" or "int4" (bfloat16 between
    products where there is an accelerator), with an int8 cache for the last two."""
    dtype, cache = weights, None
    if weights in BITS:
        dtype, cache = "float32" if jax.default_backend() == "cpu" else "bfloat16", np.dtype("int8")
    return UniTokenModel(model, jnp.dtype(dtype), cache_dtype=cache)


def random_network(boxes, dtype: str, bits: int | None = None, prefix: str = "") -> dict:
    """Parameters for a tree of `sharding.Axes` boxes, made leaf by leaf on the device in their own dtype.

    Matrices are N(0, 1 / in), what is of lower rank is as training starts it. `bits` 8 or 4: the KERNELS are
    whole numbers, all equally likely, with scales of the same variance; `prefix` is where `boxes` stand.
    """
    flat = traverse_util.flatten_dict(boxes, sep="/")
    # The generator that XLA has built in: threefry's, for 7 billion numbers, takes long to compile and run.
    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), len(flat))
    leaves = {}
    for key, (path, box) in zip(keys, flat.items()):
        shape, init = box.value.shape, box.init
        if path.endswith("/kernel"):
            init = Normal(math.prod(shape[int(box.names[0] == "layers") : -1]) ** -0.5)
        if bits and QUANTIZED_KERNELS.match(prefix + path):
            leaves[path] = _whole_numbers(key, shape, bits, init.std)
        else:
            leaves[path] = _normal(key, init, shape, dtype)
    return traverse_util.unflatten_dict(leaves, sep="/")


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(key, init: Normal, shape, dtype):
    return init(key, shape, dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _whole_numbers(key, shape, bits: int, std: float) -> QuantizedKernel:
    values = jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint8), jnp.int8)
    if bits == 4:
        values = (values >> 4).astype(jnp.int4)
    *stack, inputs, outputs = shape
    scales = (*stack, inputs // GROUP if bits == 4 else 1, outputs)
    return QuantizedKernel(values, jnp.full(scales, std * math.sqrt(12) / 2**bits, jnp.float32))


def random_decoder(model: ModelConfig, weights: str) -> dict:
    """{"decoder": ...} as `make_module` reads it, its layers apart as `Runtime.params` has them."""
    dtype = str(make_module(model, weights).dtype)
    decoder = random_network(abstract_params(model)["decoder"], dtype, BITS.get(weights), "decoder/")
    return jax.block_until_ready({"decoder": unstack_layers(decoder, consume=True)})


def timed(
    module, params, prompts: decode.Prompts, sampling, spec: decode.DecodeSpec, starts, max_tokens: int
) -> dict:
    """Seconds of compiling, of prompts read (`first_seconds`: to the first token), and of passes; the bytes
    that the passes hold beside weights and cache (`own_bytes`: a copy of either would show).

    "runs" has for each of `starts` (tokens written before) the passes, `max_tokens` at most, their seconds,
    and the tokens a row they accepted. What the cache holds of tokens not really written is zeros: reading
    them takes as long.
    """
    rows, length = prompts.tokens.shape
    rows //= 2 if spec.guided else 1
    limit = len(sampling.forced) - 1
    start = time.perf_counter()
    fixed = module, params, prompts, sample_keys(0, range(rows)), np.full(rows, limit, np.int32), sampling
    slots = length + len(sampling.forced)
    prefill = decode.prefill.lower(*fixed, slots=slots, spec=spec).compile()
    compiling = time.perf_counter() - start

    for _ in range(2):  # the first run loads the program
        state = None  # frees its cache before the next one is made
        start = time.perf_counter()
        state = jax.block_until_ready(prefill(*fixed[1:]))
        first = time.perf_counter() - start

    start = time.perf_counter()
    one = np.int32(1)
    proceed = decode.decode_loop.lower(module, params, state, sampling, one, one, spec=spec).compile()
    compiling += time.perf_counter() - start
    state, _ = proceed(params, state, sampling, one, np.int32(2))
    runs = []
    for begin in starts:
        state = state._replace(counts=jnp.full_like(state.counts, begin))
        jax.block_until_ready(state)
        start = time.perf_counter()
        state, passes = jax.block_until_ready(proceed(params, state, sampling, one, np.int32(max_tokens)))
        seconds = time.perf_counter() - start
        settled = float(jnp.mean(state.counts)) - begin
        runs.append({"start": begin, "passes": int(passes), "seconds": seconds, "settled": settled})
    temporaries = proceed.memory_analysis().temp_size_in_bytes
    return {"compile_seconds": compiling, "first_seconds": first, "own_bytes": temporaries, "runs": runs}


def make_sampling(
    forced, ids, guidance: float = 3.0, top_k: int = 4000, stride: int = 1
) -> decode.SamplingParams:
    """`ids`: those that may be chosen, None: all; nothing ends a row early."""
    return decode.SamplingParams(
        top_k=np.int32(min(top_k, len(ids)) if ids is not None else top_k),
        temperature=np.float32(1),
        guidance=np.float32(guidance),
        forced=np.asarray(forced, np.int32),
        ids=None if ids is None else np.asarray(ids, np.int32),
        ends=np.zeros(0, np.int32),
        stride=np.int32(stride),
    )


def kernels(config: DecoderConfig) -> list[tuple[int, int]]:
    """(in, out) of one layer's matrices."""
    c = config
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    attention = [(c.width, queries), (c.width, keys), (c.width, keys), (queries, c.width)]
    return [*attention, (c.width, c.mlp), (c.width, c.mlp), (c.mlp, c.width)]


def weight_bytes(config: DecoderConfig, weights: str, columns: int, dtype: str = "bfloat16") -> float:
    """Bytes of weights that a pass reads: the layers', and `columns` of the head in `dtype`."""
    bits, plain = BITS.get(weights), np.dtype(jnp.dtype(dtype)).itemsize
    total = 0.0
    for inputs, outputs in kernels(config):
        groups = 0 if bits is None else inputs // GROUP if bits == 4 else 1
        bytes_per_weight = plain if bits is None else bits / 8
        total += config.depth * outputs * (inputs * bytes_per_weight + 4 * groups)
    return total + columns * config.width * plain


def token_bytes(config: DecoderConfig, weights: str, dtype: str = "bfloat16") -> int:
    """Bytes of one token's keys and values in the cache."""
    entry = config.head_dim + 4 if weights in BITS else config.head_dim * jnp.dtype(dtype).itemsize
    return 2 * config.depth * config.kv_heads * entry


def peak_memory() -> int | None:
    """Bytes that the process's first device held at most; None where it does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
