"""Next-token cross-entropy with z-loss, over supervised positions only.

`float32[B, T, V]` never exists. Supervised positions (a third of them or fewer) are moved to the front of a
compact buffer. Two sweeps over blocks of the vocabulary make the logits of `chunk` of them at a time, in a
loop whose length follows their number: the first sums up each position's exponentials, the second makes the
gradients, where any are asked for. A loop of unknown length has no reverse gradient in jax, but here none is
needed: the loss is a sum, so its gradient is made on the way, and the backward pass only scales it.

On a mesh, each group of devices that holds rows of its own compacts those rows alone: nothing is gathered
across rows. A block of the head's gradient is summed over groups as soon as it is made, and no device ever
holds more of the head, or of its gradient, than one block besides its own share.

Letters: B rows, T tokens, D width, V vocabulary, G groups of rows, M positions of a group, K a chunk of them,
S the devices that split the vocabulary, C a block's share of it on each.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.model.sharding import RULES, data_parallel_size, shard
from unitoken_jax.sequence.vocabulary import Vocabulary

VOCABULARY_BLOCK = 8192  # ids whose logits a device makes at one time
_LOWEST = -1e30  # below every logit, and finite


class LossSums(NamedTuple):
    """Sums over supervised positions, float32[] each, so that batches can be added before dividing.

    The two entries of the float32[2] ones are (understanding, generation): text, image tokens.
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
    """Mean over supervised positions of `cross-entropy + z_loss * logsumexp^2`, and the sums it came from.

    `hidden` float[B, T, D] after the decoder's last norm; `head_kernel` float[D, V], used in hidden's dtype
    with float32 sums; `labels`, `segments` int32[B, T] as in `batch.py`; `chunk` positions whose logits of a
    vocabulary block a device holds at one time; `image_tokens` bool[V] tells the two tasks apart (None: all
    is text); `count` float32[] is what the sum is divided by where these rows are part of a batch (None:
    their own positions).
    Only the mean is differentiable, with respect to `hidden` and `head_kernel`. No supervised position: 0.
    The published code's loss (reference README: mean over positions whose next label is not ignored).
    """
    if image_tokens is None:
        image_tokens = np.zeros(head_kernel.shape[1], bool)
    groups = _row_groups(hidden.shape[0])
    wanted = targets(labels, segments).reshape(groups, -1)
    grouped = _split_groups(hidden.reshape(groups, -1, hidden.shape[-1]))
    head = head_kernel.astype(hidden.dtype)
    total, sums = _summed_loss(grouped, head, _split_groups(wanted), jnp.asarray(image_tokens), z_loss, chunk)
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
def _summed_loss(hidden, head, wanted, image_tokens, z_loss, chunk):
    """hidden [G, M, D], head [D, V], wanted int32[G, M] -> (float32[], LossSums)."""
    sweeps = _Sweeps(hidden, head, wanted, chunk)
    return sweeps.objective(image_tokens, z_loss)


def _summed_loss_forward(hidden, head, wanted, image_tokens, z_loss, chunk):
    sweeps = _Sweeps(hidden.value, head.value, wanted.value, chunk)
    found = sweeps.objective(image_tokens.value, z_loss)
    # A frozen head needs no gradient: it is the one that would cost a quarter of the work.
    return found, sweeps.gradients(z_loss, hidden.perturbed, head.perturbed)


def _summed_loss_backward(z_loss, chunk, residuals, cotangents):
    scale = cotangents[0]  # of the sum; LossSums are not differentiable
    if isinstance(scale, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    scaled = (None if leaf is None else (leaf * scale).astype(leaf.dtype) for leaf in residuals)
    return *scaled, None, None


_summed_loss.defvjp(_summed_loss_forward, _summed_loss_backward, symbolic_zeros=True)


class _Sweeps:
    """Supervised positions in front of a compact buffer, and the two sweeps over them."""

    def __init__(self, hidden, head, wanted, chunk: int):
        _, positions, width = hidden.shape
        self.chunk = min(chunk, positions)
        spare = -positions % self.chunk
        self.supervised = wanted >= 0
        # Stable sort: supervised positions first, in order. `place` is where each position went.
        order = jnp.argsort(~self.supervised, axis=1, stable=True)
        self.place = jnp.argsort(order, axis=1)
        compact = jnp.take_along_axis(hidden, order[..., None], axis=1)
        self.compact = jnp.pad(compact, ((0, 0), (0, spare), (0, 0)))
        labels = jnp.take_along_axis(wanted, order, axis=1)
        self.labels = jnp.pad(labels, ((0, 0), (0, spare)), constant_values=-1)
        self.chunks = (self.supervised.sum(1).max() + self.chunk - 1) // self.chunk
        self.split, self.blocks = _vocabulary_blocks(head.shape[1])
        self.head = head.reshape(width, self.split, self.blocks, -1)  # [D, S, blocks, C]
        self.ids = np.arange(head.shape[1], dtype=np.int32).reshape(self.head.shape[1:])

    def objective(self, image_tokens, z_loss) -> tuple[jax.Array, LossSums]:
        """The first sweep: (summed objective, LossSums)."""

        def block(carry, number):
            head, ids = self._block(number)

            def some(i, carry):
                top, total, label_logit = (self._cut(part, i) for part in carry)
                logits, is_label = self._logits(i, head, ids)[1:]
                highest = jnp.maximum(top, logits.max(-1))
                total = total * jnp.exp(top - highest) + jnp.exp(logits - highest[..., None]).sum(-1)
                label_logit += jnp.where(is_label, logits, 0).sum(-1)
                return tuple(self._put(a, b, i) for a, b in zip(carry, (highest, total, label_logit)))

            return jax.lax.fori_loop(0, self.chunks, some, carry), None

        # A sum for each device that has a part of the vocabulary, so that no iteration waits for another.
        each = (*self.labels.shape, self.split)
        start = (jnp.full(each, _LOWEST), jnp.zeros(each), jnp.zeros(each))
        start = tuple(self._split(part, "vocab") for part in start)
        (top, total, label_logit), _ = jax.lax.scan(block, start, jnp.arange(self.blocks))
        highest, label_logit = top.max(-1), label_logit.sum(-1)
        total = jnp.sum(total * jnp.exp(top - highest[..., None]), axis=-1)
        valid = self.labels >= 0
        self.normaliser = jnp.where(valid, highest + jnp.log(jnp.where(valid, total, 1)), 0)
        drawn = image_tokens[jnp.maximum(self.labels, 0)]
        tasks = jnp.stack([valid & ~drawn, valid & drawn]).astype(jnp.float32)
        label_logit = jnp.where(valid, label_logit, 0)
        sums = LossSums(
            loss=(tasks * (self.normaliser - label_logit)).sum((1, 2)),
            z=jnp.sum(self.normaliser**2),
            correct=(tasks * (label_logit >= highest)).sum((1, 2)),
            count=tasks.sum((1, 2)),
        )
        return sums.loss.sum() + z_loss * sums.z, sums

    def gradients(self, z_loss, to_hidden: bool, to_head: bool):
        """The second sweep: gradients [G, M, D] and [D, V] of the objective; None for what is not asked."""
        dtype = self.compact.dtype
        groups, _, width = self.compact.shape

        def block(to_compact, number):
            head, ids = self._block(number)

            def some(i, carry):
                to_compact, to_block = carry
                part, logits, is_label = self._logits(i, head, ids)
                normaliser = self._cut(self.normaliser, i)[..., None, None]
                slopes = jnp.exp(logits - normaliser) * (1 + 2 * z_loss * normaliser) - is_label
                valid = self._cut(self.labels, i)[..., None, None] >= 0
                slopes = jnp.where(valid, slopes, 0).astype(dtype)
                if to_hidden:
                    back = jnp.einsum("gksc,dsc->gksd", slopes, head, preferred_element_type=jnp.float32)
                    to_compact = self._put(to_compact, self._cut(to_compact, i) + back, i)
                if to_head:
                    own = jnp.einsum("gkd,gksc->gdsc", part, slopes, preferred_element_type=jnp.float32)
                    to_block += own
                return to_compact, to_block

            to_block = None
            if to_head:  # a sum for each group, as above
                to_block = self._split(jnp.zeros((groups, *head.shape)), "vocab", None)
            to_compact, to_block = jax.lax.fori_loop(0, self.chunks, some, (to_compact, to_block))
            if to_head:
                to_block = shard(to_block.sum(0).astype(dtype), "embed", "vocab", None)
            return to_compact, to_block

        start = None
        if to_hidden:
            start = self._split(jnp.zeros((*self.labels.shape, self.split, width)), "vocab", None)
        to_compact, to_blocks = jax.lax.scan(block, start, jnp.arange(self.blocks))
        if to_hidden:
            to_compact = to_compact.sum(2).astype(dtype)
            to_compact = jnp.take_along_axis(to_compact, self.place[..., None], axis=1)
            to_compact = jnp.where(self.supervised[..., None], to_compact, 0)
        if to_head:
            to_blocks = jnp.moveaxis(to_blocks, 0, 2).reshape(width, -1)
        return to_compact, to_blocks

    def _block(self, number) -> tuple[jax.Array, jax.Array]:
        """Block `number` of the head [D, S, C], only its vocabulary split, and its ids int32[S, C]."""
        head = jax.lax.dynamic_index_in_dim(self.head, number, 2, keepdims=False)
        ids = jax.lax.dynamic_index_in_dim(jnp.asarray(self.ids), number, 1, keepdims=False)
        return shard(head, None, "vocab", None), ids

    def _logits(self, i, head, ids):
        """Chunk `i`: (hidden [G, K, D], logits float32[G, K, S, C], where they are the labels')."""
        part = self._cut(self.compact, i)
        logits = jnp.einsum("gkd,dsc->gksc", part, head, preferred_element_type=jnp.float32)
        logits = self._split(logits, "vocab", None)
        return part, logits, ids == self._cut(self.labels, i)[..., None, None]

    def _cut(self, x: jax.Array, i) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, i * self.chunk, self.chunk, axis=1)

    def _put(self, x: jax.Array, part: jax.Array, i) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * self.chunk, axis=1)

    def _split(self, x: jax.Array, *names: str | None) -> jax.Array:
        """`x` [G, ..., *names] with a group on each group of devices."""
        rest = [None] * (x.ndim - 1 - len(names))
        return shard(x, "batch" if len(x) > 1 else None, *rest, *names)


def _vocabulary_blocks(size: int) -> tuple[int, int]:
    """(devices that split the vocabulary, blocks of each one's part)."""
    mesh = jax.sharding.get_abstract_mesh()
    split = 1 if mesh.empty else mesh.shape[RULES["vocab"]]
    split = split if size % split == 0 else 1
    own = size // split
    least = -(-own // VOCABULARY_BLOCK)
    return split, next(blocks for blocks in (*range(least, 2 * least), 1) if own % blocks == 0)
