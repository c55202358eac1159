"""Attention: one contract, and a kernel for each kind of device.

Letters: B rows, T queries, S keys, N heads, K key heads, H head dimension. Queries are always the last T of
the S tokens, so that the end of a row can attend to what came before it.

Who sees whom, in a packed row of S = 6 tokens with the segments 1 1 1 2 2 0 (0 is padding), and in a cache of
6 slots, whose token in slot s has position s, for two rows that add tokens at the positions 1 2 and 4 5:

    packed    key  0 1 2 3 4 5         cached   slot  0 1 2 3 4 5
    query 0        x . . . . .         row 0, at 1    x x . . . .
          1        x x . . . .                at 2    x x x . . .
          2        x x x . . .         row 1, at 4    x x x x x .
          3        . . . x . .                at 5    x x x x x x
          4        . . . x x .
          5        . . . . . x

With T = 2 the queries of the packed row are 4 and 5 alone. What row 0 of the cache holds beyond slot 2 is
left from padding or drafts: no query sees it before it is overwritten.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from unitoken_jax.model.quantize import QuantizedKV
from unitoken_jax.model.sharding import partition_spec_for

# The names under which remat policies keep the projections and attention's output.
QKV, CONTEXT = "qkv", "context"
# Without a fused kernel, at most so many scores of one head and row exist at one time: 16 MiB of float32.
MAX_SCORES = 2**22
# Without a fused kernel, a row's queries are cut into so many blocks, each multiplied only with the keys
# up to its end. Four blocks make 5/8 of the products of all pairs.
CAUSAL_QUERY_BLOCKS = 4
# The Triton kernel's warps and pipeline stages. With jax's own choice, 8 warps, an H200 takes 1.15
# of the time.
WARPS, STAGES = 4, 2
# The score of a pair that must not see each other: finite, so that a query that sees nothing has uniform
# weights instead of NaN.
_MASKED = -1e30


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None = None, kernel: str = "xla"
) -> jax.Array:
    """Grouped-query attention, softmax in float32.

    q [B, T, N, H]; k, v [B, S, K, H], query head n reading key head n // (N / K). `segments` int32[B, S]:
    packed rows; a token sees itself and what comes before it in its segment. None: everyone sees everyone.
    `kernel` is one of KERNELS (`kernel_for` chooses). Returns [B, T, N, H] in v's dtype.
    """
    if segments is None:
        return _in_chunks(lambda q: dense_attention(q, k, v, None, "bskh"), k.shape[1], q)
    return KERNELS[kernel](q, k, v, segments)


def kernel_for(platform: str, head_dim: int) -> str:
    """The name of the fastest kernel on "tpu", "gpu" or "cpu"; splash wants whole lanes of 128."""
    if platform == "tpu" and head_dim % 128 == 0:
        return "splash"
    return "triton" if platform == "gpu" else "xla"


def cached_attention(q: jax.Array, k, v, positions: jax.Array) -> jax.Array:
    """Attention over a cache: q [B, T, N, H]; k, v [B, K, S, H], or QuantizedKV of that shape -> [B, T, N,
    H].

    A query at `positions` int32[B, T] sees the slots up to its position. Heads come before slots so that a
    matrix product reads the cache as it lies, without a copy; a QuantizedKV's scales multiply scores and
    weights, so that its values need no copy either.
    """
    scales = (None, None)
    if isinstance(k, QuantizedKV):
        (k, v), scales = (k.values, v.values), (k.scales, v.scales)
    k, v = k.astype(q.dtype), v.astype(q.dtype)
    slots = jnp.arange(k.shape[2])

    def attend(q, positions):
        return dense_attention(q, k, v, slots <= positions[:, :, None], "bksh", *scales)

    return _in_chunks(attend, k.shape[2], q, positions)


def _xla(q, k, v, segments):
    """The kernel without fused code: the queries in CAUSAL_QUERY_BLOCKS blocks, each multiplied with the keys
    up to its end alone."""
    T, S = q.shape[1], k.shape[1]
    size = T // CAUSAL_QUERY_BLOCKS if T % CAUSAL_QUERY_BLOCKS == 0 and T >= 64 * CAUSAL_QUERY_BLOCKS else T
    blocks = []
    for start in range(0, T, size):
        end = S - T + start + size
        blocks.append(_query_block(q[:, start : start + size], k[:, :end], v[:, :end], segments[:, :end]))
    return checkpoint_name(jnp.concatenate(blocks, axis=1), CONTEXT)


def _query_block(q, k, v, segments):
    (B, T), S = q.shape[:2], k.shape[1]
    keys = jnp.arange(S)

    def attend(q, query_segments, queries):
        visible = (query_segments[:, :, None] == segments[:, None]) & (keys <= queries[:, :, None])
        return dense_attention(q, k, v, visible, "bskh")

    queries = jnp.broadcast_to(keys[S - T :], (B, T))
    return _in_chunks(attend, S, q, segments[:, S - T :], queries)


def dense_attention(q, k, v, visible, axes: str, k_scales=None, v_scales=None) -> jax.Array:
    """Attention by two matrix products, with all scores in memory; returns [B, T, N, H].

    Args:
      q: [B, T, N, H].
      k, v: of `axes`, "bskh" or "bksh", in whole numbers where there are scales.
      visible: bool[B, T, S], whether query t sees key s; None: all do.
      k_scales, v_scales: float32[B, K, S] of quantized k and v, or None.
    """
    N, H = q.shape[2:]
    K = k.shape[axes.index("k")]
    # Queries that share a key head lie one after another: an axis for them, even of one, takes XLA twice as
    # long on a CPU, in both passes.
    q = rearrange(q, "b t (k g) h -> b k (g t) h", k=K)
    scores = jnp.einsum(f"bkth,{axes}->bkts", q, k, preferred_element_type=jnp.float32) * H**-0.5
    if k_scales is not None:
        scores *= k_scales[:, :, None]
    if visible is not None:
        scores = jnp.where(jnp.tile(visible, (1, N // K, 1))[:, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    if v_scales is not None:
        weights *= v_scales[:, :, None]
    y = jnp.einsum(f"bkts,{axes}->bkth", weights.astype(v.dtype), v)
    return rearrange(y, "b k (g t) h -> b t (k g) h", g=N // K)


def _in_chunks(attend, S: int, *queries: jax.Array) -> jax.Array:
    """`attend(*queries)` of arrays [B, T, ...], in chunks of T where there would be more than MAX_SCORES."""
    B, T = queries[0].shape[:2]
    if T * S <= MAX_SCORES:
        return attend(*queries)
    count = -(-T * S // MAX_SCORES)
    chunk_size = -(-T // count)

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, count * chunk_size - T)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, count, chunk_size, *x.shape[2:]), 1, 0)

    # Without remat the backward pass would keep every chunk's scores, which is what this avoids.
    y = jax.lax.map(lambda chunk: jax.checkpoint(attend)(*chunk), tuple(map(chunks, queries)))
    return jnp.moveaxis(y, 0, 1).reshape(B, count * chunk_size, *y.shape[3:])[:, :T]


def _per_device(kernel: Callable) -> Callable:
    """Runs `kernel` on each device's own rows and heads: the compiler cannot split a hand-written one."""

    @functools.wraps(kernel)
    def wrapped(q, k, v, segments):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return kernel(q, k, v, segments)
        queries = partition_spec_for(("batch", "seq", "heads", "head_dim"), q.shape, mesh.shape)
        keys = partition_spec_for(("batch", "seq", "kv_heads", "head_dim"), k.shape, mesh.shape)
        if queries[2] != keys[2]:  # fewer key heads than devices along that axis
            k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
            keys = queries
        row = jax.sharding.PartitionSpec(queries[0], None)
        return jax.shard_map(kernel, in_specs=(queries, keys, keys, row), out_specs=queries, check_vma=False)(
            q, k, v, segments
        )

    return wrapped


def _blocks(length: int, largest: int) -> int:
    """The largest multiple of 128 up to `largest` that divides `length`. ValueError where there is none."""
    sizes = [size for size in range(128, min(length, largest) + 1, 128) if length % size == 0]
    if not sizes or length % 128:
        raise ValueError(
            f"the fused attention kernels work on blocks of 128 tokens, but {length} are to be attended: "
            "make data.row_length and data.row_prefix multiples of 128, or set train.attention to 'xla'"
        )
    return sizes[-1]


@_per_device
def _splash(q, k, v, segments, interpret: bool = False):
    """JAX's splash attention for TPU, which skips blocks above the diagonal; arguments as `attention`'s."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (T, N, H), S = q.shape[1:], k.shape[1]
    rows, columns = _blocks(T, 1024), _blocks(S, 1024)
    sizes = splash.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=min(columns, 512) if columns % 512 == 0 else columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    run = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((T, S), offset=S - T)] * N),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=CONTEXT,
        interpret=interpret,
    )
    ids = splash.SegmentIds(segments[:, S - T :], segments)
    q = (q.astype(jnp.float32) * H**-0.5).astype(q.dtype)
    heads_first = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.vmap(run)(*heads_first, ids).swapaxes(1, 2)


@_per_device
def _triton(q, k, v, segments, interpret: bool = False):
    """JAX's Pallas flash attention for GPU; arguments as `attention`'s.

    It wants as many queries, and query heads, as keys: zeros stand for the queries before the last T.
    """
    (T, N, H), S = q.shape[1:], k.shape[1]
    k, v = (jnp.repeat(x, N // k.shape[2], axis=2) for x in (k, v))
    q = jnp.pad(q, ((0, 0), (S - T, 0), (0, 0), (0, 0)))
    block = min(_blocks(S, 128), 64 if H > 64 else 128)
    return _flash(q, k, v, segments, block, interpret)[:, S - T :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _flash(q, k, v, segments, block: int, interpret: bool):
    return _flash_forward(q, k, v, segments, block, interpret)[0]


def _flash_forward(q, k, v, segments, block, interpret):
    from jax.experimental.pallas.ops.gpu.attention import mha

    y, sums = mha(q, k, v, segments, **_flash_settings(q, block, interpret), return_residuals=True)
    # Named, both are kept for the backward pass. JAX's own rule names neither: remat ran the kernel again.
    y, sums = checkpoint_name(y, CONTEXT), checkpoint_name(sums, CONTEXT)
    return y, (q, k, v, segments, y, sums)


def _flash_backward(block, interpret, saved, cotangent):
    from jax.experimental.pallas.ops.gpu.attention import _mha_backward

    settings = _flash_settings(saved[0], block, interpret)
    return _mha_backward(**settings, return_residuals=False, res=saved, do=cotangent)


def _flash_settings(q, block: int, interpret: bool) -> dict:
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes

    return {
        "sm_scale": q.shape[-1] ** -0.5,
        "causal": True,
        "block_sizes": BlockSizes(*[block] * 6),
        "backward_pass_impl": "triton",
        "num_warps": WARPS,
        "num_stages": STAGES,
        "grid": None,
        "interpret": interpret,
        "debug": False,
    }


_flash.defvjp(_flash_forward, _flash_backward)


KERNELS: dict[str, Callable] = {"xla": _xla, "splash": _splash, "triton": _triton}
