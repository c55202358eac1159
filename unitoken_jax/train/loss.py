"""Next-token cross-entropy with z-loss, over supervised positions only.

`float32[B, T, V]` never exists. Supervised positions (a third of them or fewer) are moved to the front of a
compact buffer, and a loop whose length follows their number makes the logits of `chunk` of them at a time.
A loop of unknown length has no reverse gradient in jax, but here none is needed: the loss is a sum, so its
gradient is made in the same pass that makes the logits (which also saves making them twice), and the
backward pass only scales it.

On a mesh, each group of devices that holds rows of its own compacts those rows alone: nothing is gathered
across rows, and the head's gradient is summed over groups once, after the loop.

Letters: B rows, T tokens, D width, V vocabulary, G groups of rows, M positions of a group, K a chunk.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.sharding import RULES, shard
from unitoken_jax.vocabulary import Vocabulary


class LossSums(NamedTuple):
    """Sums over supervised positions, float32[] each, so that batches can be added before dividing.

    The two entries of the float32[2] ones are (understanding, generation): text, picture tokens.
    """

    loss: jax.Array  # float32[2]: cross-entropy in nats
    z: jax.Array  # logsumexp squared
    correct: jax.Array  # float32[2]: the likeliest token is the label
    count: jax.Array  # float32[2]

    def means(self) -> dict[str, jax.Array]:
        """What is logged. A task without a supervised position has loss and accuracy NaN."""
        total = jnp.maximum(self.count.sum(), 1)
        return {
            "loss": self.loss.sum() / total,
            "z_loss": self.z / total,
            "accuracy": self.correct.sum() / total,
            "understanding_loss": self.loss[0] / self.count[0],
            "generation_loss": self.loss[1] / self.count[1],
            "understanding_accuracy": self.correct[0] / self.count[0],
            "generation_accuracy": self.correct[1] / self.count[1],
            "understanding_tokens": self.count[0],
            "generation_tokens": self.count[1],
        }


def picture_token_table(vocabulary: Vocabulary, size: int) -> np.ndarray:
    """bool[size]: which ids belong to the discrete part of a picture: begin, sizes, codes, new-lines, end.

    `size` is the decoder's vocabulary. Raises ValueError if it is smaller than the tokenizer's.
    """
    if size < vocabulary.size:
        raise ValueError(
            f"the tokenizer has ids up to {vocabulary.size - 1}, the decoder's vocab_size is {size}: "
            f"set config.model.decoder.vocab_size to at least {vocabulary.size}"
        )
    table = np.zeros(size, bool)
    table[vocabulary.code_ids] = True
    table[vocabulary.size_ids[1:]] = True
    table[[vocabulary.begin_of_image, vocabulary.end_of_image, vocabulary.new_line]] = True
    return table


def targets(labels: jax.Array, segments: jax.Array) -> jax.Array:
    """int32[B, T]: the label of the next position if it is in the same segment and to be learnt, else -1."""
    following = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    same = jnp.pad(segments[:, 1:], ((0, 0), (0, 1))) == segments
    return jnp.where(same & (segments > 0), following, -1)


def cross_entropy(
    hidden: jax.Array,
    head_kernel: jax.Array,
    labels: jax.Array,
    segments: jax.Array,
    z_loss: float,
    chunk: int,
    picture_tokens: np.ndarray | jax.Array | None = None,
) -> tuple[jax.Array, LossSums]:
    """Mean over supervised positions of `cross-entropy + z_loss * logsumexp^2`, and the sums it came from.

    `hidden` float[B, T, D] after the decoder's last norm; `head_kernel` float[D, V], used in hidden's dtype
    with float32 sums; `labels`, `segments` int32[B, T] as in `batch.py`; `chunk` positions whose logits a
    device holds at one time; `picture_tokens` bool[V] tells the two tasks apart (None: all is text).
    Only the mean is differentiable, with respect to `hidden` and `head_kernel`. No supervised position: 0.
    The published code's loss (reference README: mean over positions whose next label is not ignored).
    """
    if picture_tokens is None:
        picture_tokens = np.zeros(head_kernel.shape[1], bool)
    groups = _row_groups(hidden.shape[0])
    wanted = targets(labels, segments).reshape(groups, -1)
    grouped = _split_groups(hidden.reshape(groups, -1, hidden.shape[-1]))
    head = shard(head_kernel.astype(hidden.dtype), None, "vocab")
    total, sums = _summed_loss(
        grouped, head, _split_groups(wanted), jnp.asarray(picture_tokens), z_loss, chunk
    )
    return total / jnp.maximum(sums.count.sum(), 1), jax.lax.stop_gradient(sums)


def _row_groups(rows: int) -> int:
    """How many groups of devices hold rows of their own, if they divide the rows evenly; else 1."""
    mesh = jax.sharding.get_abstract_mesh()
    groups = 1 if mesh.empty else int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
    return groups if rows % groups == 0 else 1


def _split_groups(x: jax.Array) -> jax.Array:
    """`x` [G, ...] with a group on each group of devices."""
    return shard(x, "batch", *[None] * (x.ndim - 1)) if x.shape[0] > 1 else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _summed_loss(hidden, head, wanted, picture_tokens, z_loss, chunk):
    """hidden [G, M, D], head [D, V], wanted int32[G, M] -> (float32[], LossSums)."""
    total, sums, _, _ = _sweep(hidden, head, wanted, picture_tokens, z_loss, chunk, False, False)
    return total, sums


def _summed_loss_forward(hidden, head, wanted, picture_tokens, z_loss, chunk):
    arguments = [each.value for each in (hidden, head, wanted, picture_tokens)]
    # A frozen head needs no gradient: it is the one that would cost a third of the work.
    total, sums, to_hidden, to_head = _sweep(*arguments, z_loss, chunk, hidden.perturbed, head.perturbed)
    return (total, sums), (to_hidden, to_head)


def _summed_loss_backward(z_loss, chunk, residuals, cotangents):
    to_hidden, to_head = residuals
    scale = cotangents[0]  # of the sum; LossSums are not differentiable
    if isinstance(scale, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    if to_hidden is not None:
        to_hidden = (to_hidden * scale).astype(to_hidden.dtype)
    if to_head is not None:
        to_head = (to_head * scale).astype(to_head.dtype)
    return to_hidden, to_head, None, None


_summed_loss.defvjp(_summed_loss_forward, _summed_loss_backward, symbolic_zeros=True)


def _sweep(hidden, head, wanted, picture_tokens, z_loss, chunk, hidden_gradient: bool, head_gradient: bool):
    """The loop over chunks: (summed objective, LossSums, gradients to hidden and head; None if not asked)."""
    groups, positions, _ = hidden.shape
    chunk = min(chunk, positions)
    padded = -(-positions // chunk) * chunk
    supervised = wanted >= 0
    # Stable sort: supervised positions first, in order. `place` is where each position went.
    order = jnp.argsort(~supervised, axis=1, stable=True)
    place = jnp.argsort(order, axis=1)
    compact = jnp.take_along_axis(hidden, order[..., None], axis=1)
    compact = jnp.pad(compact, ((0, 0), (0, padded - positions), (0, 0)))
    labels = jnp.pad(
        jnp.take_along_axis(wanted, order, axis=1), ((0, 0), (0, padded - positions)), constant_values=-1
    )
    chunks = (supervised.sum(1).max() + chunk - 1) // chunk

    def body(i, carry):
        sums, to_compact, to_head = carry
        part = jax.lax.dynamic_slice_in_dim(compact, i * chunk, chunk, axis=1)
        target = jax.lax.dynamic_slice_in_dim(labels, i * chunk, chunk, axis=1)
        added, slopes = _chunk(part, head, target, picture_tokens, z_loss)
        slopes = slopes.astype(hidden.dtype)
        if to_compact is not None:
            back = jnp.einsum("gkv,dv->gkd", slopes, head)
            to_compact = jax.lax.dynamic_update_slice_in_dim(to_compact, back, i * chunk, axis=1)
        if to_head is not None:
            to_head += jnp.einsum("gkd,gkv->gdv", part, slopes, preferred_element_type=jnp.float32)
        return jax.tree.map(jnp.add, sums, added), to_compact, to_head

    zero, pair = jnp.zeros(groups), jnp.zeros((2, groups))
    to_compact = _split_groups(jnp.zeros_like(compact)) if hidden_gradient else None
    # A sum per group, so that no iteration has to wait for other devices.
    to_head = jnp.zeros((groups, *head.shape)) if head_gradient else None
    if to_head is not None:
        to_head = shard(to_head, "batch" if groups > 1 else None, None, "vocab")
    start = (LossSums(pair, zero, pair, pair), to_compact, to_head)
    sums, to_compact, to_head = jax.lax.fori_loop(0, chunks, body, start)
    sums = jax.tree.map(lambda each: each.sum(-1), sums)
    total = sums.loss.sum() + z_loss * sums.z
    if hidden_gradient:
        to_hidden = jnp.take_along_axis(to_compact, place[..., None], axis=1)
        to_hidden = jnp.where(supervised[..., None], to_hidden, 0)
    return (
        total,
        sums,
        to_hidden if hidden_gradient else None,
        to_head.sum(0).astype(head.dtype) if head_gradient else None,
    )


def _chunk(hidden, head, target, picture_tokens, z_loss):
    """hidden [G, K, D], target int32[G, K] or -1 -> (LossSums [..., G], float32[G, K, V] slopes)."""
    logits = jnp.einsum("gkd,dv->gkv", hidden, head, preferred_element_type=jnp.float32)
    logits = shard(logits, "batch" if logits.shape[0] > 1 else None, None, "vocab")
    valid = (target >= 0).astype(jnp.float32)
    is_label = jnp.arange(logits.shape[-1], dtype=jnp.int32) == target[..., None]
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    label_logit = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
    drawn = picture_tokens[jnp.maximum(target, 0)]
    tasks = jnp.stack([valid * ~drawn, valid * drawn])
    # Summed over a group only, for the same reason as the head's gradient.
    sums = LossSums(
        loss=(tasks * (normaliser - label_logit)).sum(-1),
        z=(valid * normaliser**2).sum(-1),
        correct=(tasks * (label_logit >= logits.max(-1))).sum(-1),
        count=tasks.sum(-1),
    )
    slopes = jnp.exp(logits - normaliser[..., None]) * (1 + 2 * z_loss * normaliser)[..., None] - is_label
    return sums, slopes * valid[..., None]
