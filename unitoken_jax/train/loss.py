"""Next-token cross-entropy with z-loss, over supervised positions only.

`cross_entropy_definition` says in a few lines what the loss is, and makes all logits, float32[B, T, V].
Training uses `cross_entropy`: the same numbers without that array.

There, supervised positions (a third of them or fewer) are moved to the front of a compact buffer. Two sweeps
over blocks of the vocabulary make the logits of `chunk` of them at a time, in a loop whose length follows
their number: the first sums up each position's exponentials, the second makes the gradients, where any are
asked for. A loop of unknown length has no reverse gradient in jax, but here none is needed: the loss is a
sum, so its gradient is made on the way, and the backward pass only scales it.

On a mesh, each group of devices that holds rows of its own compacts those rows alone: nothing is gathered
across rows. A block of the head's gradient is summed over groups as soon as it is made, and no device ever
holds more of the head, or of its gradient, than one block besides its own share.

Letters: B rows, T tokens, D width, V vocabulary, G groups of rows, M positions of a group, K a chunk of them,
S the devices that split the vocabulary, C a block's share of it on each.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.model.sharding import RULES, data_parallel_size, shard
from unitoken_jax.sequence.vocabulary import Vocabulary

VOCABULARY_BLOCK = 8192  # A device makes the logits of at most so many ids at one time.
_LOWEST = -1e30  # Below every logit, and finite.


class LossSums(NamedTuple):
    """Sums over supervised positions, float32[] each, so that batches can be added before dividing.

    The two entries of the float32[2] ones are (understanding, generation): text, image tokens.
    """

    loss: jax.Array  # float32[2]: cross-entropy in nats
    z: jax.Array  # logsumexp squared
    correct: jax.Array  # float32[2]: the likeliest token is the label
    count: jax.Array  # type: ignore[assignment]  # float32[2]; hides tuple.count, which nobody needs

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


def image_token_table(vocabulary: Vocabulary, size: int) -> np.ndarray:
    """bool[size]: which ids belong to the discrete part of an image: begin, sizes, codes, new-lines, end.

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


def cross_entropy_definition(
    hidden: jax.Array, head_kernel: jax.Array, labels: jax.Array, segments: jax.Array, z_loss: float
) -> jax.Array:
    """The loss float32[] by its definition.

    It is the mean over supervised positions of `-log softmax(logits)[label] + z_loss * logsumexp(logits)^2`,
    and 0 where there are none.

    Args:
        hidden: float[B, T, D] after the decoder's last norm.
        head_kernel: float[D, V].
        labels: int32[B, T] as in `batch.py`.
        segments: int32[B, T] as in `batch.py`.
        z_loss: the weight of the squared logsumexp.
    """
    next_labels = targets(labels, segments)
    logits = jnp.matmul(hidden, head_kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    label_logit = jnp.take_along_axis(logits, jnp.maximum(next_labels, 0)[..., None], axis=-1)[..., 0]
    losses = normaliser - label_logit + z_loss * normaliser**2
    supervised = next_labels >= 0
    return jnp.where(supervised, losses, 0).sum() / jnp.maximum(supervised.sum(), 1)


def cross_entropy(
    hidden: jax.Array,
    head_kernel: jax.Array,
    labels: jax.Array,
    segments: jax.Array,
    z_loss: float,
    chunk: int,
    image_tokens: np.ndarray | jax.Array | None = None,
    count: jax.Array | None = None,
) -> tuple[jax.Array, LossSums]:
    """`cross_entropy_definition` without an array of all logits, and the sums that it comes from.

    Only the mean is differentiable, with respect to `hidden` and `head_kernel`. It is the published code's
    loss: the mean over positions whose next label is not ignored.

    Args:
        hidden: float[B, T, D] after the decoder's last norm.
        head_kernel: float[D, V], used in hidden's dtype with float32 sums.
        labels: int32[B, T] as in `batch.py`.
        segments: int32[B, T] as in `batch.py`.
        z_loss: the weight of the squared logsumexp.
        chunk: positions whose logits of a vocabulary block a device holds at one time.
        image_tokens: bool[V], which ids are image tokens; None: all are text.
        count: float32[], what the sum is divided by where these rows are part of a batch; None: the number of
            their own supervised positions.
    """
    if image_tokens is None:
        image_tokens = np.zeros(head_kernel.shape[1], bool)
    groups = _row_groups(hidden.shape[0])
    next_labels = targets(labels, segments).reshape(groups, -1)
    grouped = _split_groups(hidden.reshape(groups, -1, hidden.shape[-1]))
    head = head_kernel.astype(hidden.dtype)
    total, sums = _summed_loss(
        grouped, head, _split_groups(next_labels), jnp.asarray(image_tokens), z_loss, chunk
    )
    count = sums.count.sum() if count is None else count
    return total / jnp.maximum(count, 1), jax.lax.stop_gradient(sums)


def _row_groups(rows: int) -> int:
    """How many groups of devices hold rows of their own, if they divide the rows evenly; else 1."""
    mesh = jax.sharding.get_abstract_mesh()
    groups = 1 if mesh.empty else data_parallel_size(mesh)
    return groups if rows % groups == 0 else 1


def _split_groups(x: jax.Array) -> jax.Array:
    """`x` [G, ...] with a group on each group of devices."""
    return shard(x, "batch", *[None] * (x.ndim - 1)) if x.shape[0] > 1 else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _summed_loss(hidden, head, next_labels, image_tokens, z_loss, chunk):
    """hidden [G, M, D], head [D, V], next_labels int32[G, M] -> (float32[], LossSums)."""
    objective, sums, _ = _compact(hidden, head, next_labels, chunk).objective(image_tokens, z_loss)
    return objective, sums


def _summed_loss_forward(hidden, head, next_labels, image_tokens, z_loss, chunk):
    compacted = _compact(hidden.value, head.value, next_labels.value, chunk)
    objective, sums, normaliser = compacted.objective(image_tokens.value, z_loss)
    # A frozen head needs no gradient: it is the one that would cost a quarter of the work.
    gradients = compacted.gradients(normaliser, z_loss, hidden.perturbed, head.perturbed)
    return (objective, sums), gradients


def _summed_loss_backward(z_loss, chunk, residuals, cotangents):
    scale = cotangents[0]  # of the sum; LossSums are not differentiable
    if isinstance(scale, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    scaled = (None if leaf is None else (leaf * scale).astype(leaf.dtype) for leaf in residuals)
    return *scaled, None, None


_summed_loss.defvjp(_summed_loss_forward, _summed_loss_backward, symbolic_zeros=True)


def _compact(hidden, head, next_labels, chunk: int) -> "_Compacted":
    """hidden [G, M, D], head [D, V], next_labels int32[G, M] with the supervised positions in front."""
    _, positions, width = hidden.shape
    chunk = min(chunk, positions)
    padding = -positions % chunk
    supervised = next_labels >= 0
    order = jnp.argsort(~supervised, axis=1, stable=True)  # stable: supervised positions first, in order
    rank = jnp.argsort(order, axis=1)
    compact = jnp.take_along_axis(hidden, order[..., None], axis=1)
    compact = jnp.pad(compact, ((0, 0), (0, padding), (0, 0)))
    labels = jnp.take_along_axis(next_labels, order, axis=1)
    labels = jnp.pad(labels, ((0, 0), (0, padding)), constant_values=-1)
    chunks = (supervised.sum(1).max() + chunk - 1) // chunk
    split, blocks = _vocabulary_blocks(head.shape[1])
    head = head.reshape(width, split, blocks, -1)
    return _Compacted(compact, labels, supervised, rank, chunks, chunk, head)


@dataclasses.dataclass(frozen=True)
class _Compacted:
    """Supervised positions in front of a compact buffer, and the two sweeps over them."""

    compact: jax.Array  # float[G, M, D], M padded to whole chunks
    labels: jax.Array  # int32[G, M] of the same positions, -1 where nothing is to be learnt
    supervised: jax.Array  # bool[G, M], in the positions' own order
    rank: jax.Array  # int32[G, M]: where in the buffer each position has gone
    chunks: jax.Array  # int32[]: how many chunks hold a supervised position
    chunk: int
    head: jax.Array  # float[D, S, blocks, C]

    @property
    def split(self) -> int:
        """S, the devices that split the vocabulary."""
        return self.head.shape[1]

    @property
    def blocks(self) -> int:
        """Into how many blocks each device's share of the vocabulary is cut."""
        return self.head.shape[2]

    def objective(self, image_tokens, z_loss) -> tuple[jax.Array, LossSums, jax.Array]:
        """The first sweep: (summed objective, LossSums, normaliser float32[G, M] of each position)."""

        def block(carry, number):
            head, ids = self._block(number)

            def sweep_chunk(i, carry):
                top, total, label_logit = (self._cut(sums, i) for sums in carry)
                logits, is_label = self._logits(i, head, ids)[1:]
                highest = jnp.maximum(top, logits.max(-1))
                total = total * jnp.exp(top - highest) + jnp.exp(logits - highest[..., None]).sum(-1)
                label_logit += jnp.where(is_label, logits, 0).sum(-1)
                return tuple(self._put(a, b, i) for a, b in zip(carry, (highest, total, label_logit)))

            return jax.lax.fori_loop(0, self.chunks, sweep_chunk, carry), None

        # A sum for each device that has a part of the vocabulary, so that no iteration waits for another.
        shape = (*self.labels.shape, self.split)
        start = tuple(self._split(jnp.full(shape, fill), "vocab") for fill in (_LOWEST, 0.0, 0.0))
        (top, total, label_logit), _ = jax.lax.scan(block, start, jnp.arange(self.blocks))
        highest, label_logit = top.max(-1), label_logit.sum(-1)
        total = jnp.sum(total * jnp.exp(top - highest[..., None]), axis=-1)
        valid = self.labels >= 0
        normaliser = jnp.where(valid, highest + jnp.log(jnp.where(valid, total, 1)), 0)
        is_image = image_tokens[jnp.maximum(self.labels, 0)]
        tasks = jnp.stack([valid & ~is_image, valid & is_image]).astype(jnp.float32)
        label_logit = jnp.where(valid, label_logit, 0)
        sums = LossSums(
            loss=(tasks * (normaliser - label_logit)).sum((1, 2)),
            z=jnp.sum(normaliser**2),
            correct=(tasks * (label_logit >= highest)).sum((1, 2)),
            count=tasks.sum((1, 2)),
        )
        return sums.loss.sum() + z_loss * sums.z, sums, normaliser

    def gradients(self, normaliser, z_loss, to_hidden: bool, to_head: bool):
        """The second sweep: the objective's gradients (to hidden [G, M, D], to head [D, V]).

        `normaliser` is the first sweep's. A gradient that is not asked for is None.
        """
        dtype = self.compact.dtype
        groups, _, width = self.compact.shape

        def block(to_compact, number):
            head, ids = self._block(number)

            def sweep_chunk(i, carry):
                to_compact, to_block = carry
                chunk_hidden, logits, is_label = self._logits(i, head, ids)
                chunk_normaliser = self._cut(normaliser, i)[..., None, None]
                softmax = jnp.exp(logits - chunk_normaliser)
                cotangent = softmax * (1 + 2 * z_loss * chunk_normaliser) - is_label
                valid = self._cut(self.labels, i)[..., None, None] >= 0
                cotangent = jnp.where(valid, cotangent, 0).astype(dtype)
                if to_hidden:
                    back = jnp.einsum("gksc,dsc->gksd", cotangent, head, preferred_element_type=jnp.float32)
                    to_compact = self._put(to_compact, self._cut(to_compact, i) + back, i)
                if to_head:
                    to_block += jnp.einsum(
                        "gkd,gksc->gdsc", chunk_hidden, cotangent, preferred_element_type=jnp.float32
                    )
                return to_compact, to_block

            to_block = None
            if to_head:  # a sum for each group, as above
                to_block = self._split(jnp.zeros((groups, *head.shape)), "vocab", None)
            to_compact, to_block = jax.lax.fori_loop(0, self.chunks, sweep_chunk, (to_compact, to_block))
            if to_head:
                to_block = shard(to_block.sum(0).astype(dtype), "embed", "vocab", None)
            return to_compact, to_block

        start: Any = None
        if to_hidden:
            start = self._split(jnp.zeros((*self.labels.shape, self.split, width)), "vocab", None)
        to_compact, to_blocks = jax.lax.scan(block, start, jnp.arange(self.blocks))
        if to_hidden:
            to_compact = to_compact.sum(2).astype(dtype)
            to_compact = jnp.take_along_axis(to_compact, self.rank[..., None], axis=1)
            to_compact = jnp.where(self.supervised[..., None], to_compact, 0)
        if to_head:
            to_blocks = jnp.moveaxis(to_blocks, 0, 2).reshape(width, -1)
        return to_compact, to_blocks

    def _block(self, number) -> tuple[jax.Array, jax.Array]:
        """Block `number` of the head [D, S, C], only its vocabulary split, and its ids int32[S, C]."""
        head = jax.lax.dynamic_index_in_dim(self.head, number, 2, keepdims=False)
        shape = self.head.shape[1:]
        ids = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
        ids = jax.lax.dynamic_index_in_dim(jnp.asarray(ids), number, 1, keepdims=False)
        return shard(head, None, "vocab", None), ids

    def _logits(self, i, head, ids):
        """Chunk `i`: (hidden [G, K, D], logits float32[G, K, S, C], where they are the labels')."""
        chunk_hidden = self._cut(self.compact, i)
        logits = jnp.einsum("gkd,dsc->gksc", chunk_hidden, head, preferred_element_type=jnp.float32)
        logits = self._split(logits, "vocab", None)
        return chunk_hidden, logits, ids == self._cut(self.labels, i)[..., None, None]

    def _cut(self, x: jax.Array, i) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, i * self.chunk, self.chunk, axis=1)

    def _put(self, x: jax.Array, update: jax.Array, i) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, update, i * self.chunk, axis=1)

    def _split(self, x: jax.Array, *names: str | None) -> jax.Array:
        """`x` [G, ..., *names] with a group on each group of devices."""
        rest = [None] * (x.ndim - 1 - len(names))
        return shard(x, "batch" if len(x) > 1 else None, *rest, *names)


def _vocabulary_blocks(size: int) -> tuple[int, int]:
    """(S devices that split the vocabulary, number of blocks in the share of each)."""
    mesh = jax.sharding.get_abstract_mesh()
    split = 1 if mesh.empty else mesh.shape[RULES["vocab"]]
    split = split if size % split == 0 else 1
    share = size // split
    minimum = -(-share // VOCABULARY_BLOCK)
    return split, next(blocks for blocks in (*range(minimum, 2 * minimum), 1) if share % blocks == 0)
