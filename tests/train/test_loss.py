"""Loss: against the plain formula, masks, chunks, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unitoken_jax.sequence import vocabulary
from unitoken_jax.train.loss import cross_entropy, cross_entropy_definition, image_token_table, targets

B, T, D, V = 4, 12, 8, 23
Z = 1e-2


def example(seed=0, supervised=0.4):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
    tokens = rng.integers(0, V, (B, T))
    labels = jnp.asarray(np.where(rng.random((B, T)) < supervised, tokens, -1), jnp.int32)
    segments = jnp.asarray(np.sort(rng.integers(1, 4, (B, T)), 1), jnp.int32).at[:, -2:].set(0)
    return hidden, head, labels, segments


def plain(hidden, head, labels, segments, z_loss=Z):
    """The definition, one position at a time: mean of cross-entropy + z logsumexp^2."""
    losses = []
    for b in range(B):
        for t in range(T - 1):
            if labels[b, t + 1] >= 0 and segments[b, t] == segments[b, t + 1] and segments[b, t] > 0:
                logits = hidden[b, t] @ head
                normaliser = jax.nn.logsumexp(logits)
                losses.append(normaliser - logits[labels[b, t + 1]] + z_loss * normaliser**2)
    return sum(losses) / max(len(losses), 1)


def test_targets_shift_by_one_and_stop_at_segment_ends():
    labels = jnp.array([[5, 6, -1, 7, 8, 9, 3]])
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0]])
    assert targets(labels, segments).tolist() == [[6, -1, -1, 8, 9, -1, -1]]


def test_the_definition_is_the_mean_over_positions_one_at_a_time():
    hidden, head, labels, segments = example()
    expected = plain(hidden, head, np.array(labels), np.array(segments))
    loss = cross_entropy_definition(hidden, head, labels, segments, Z)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_equals_the_definition_with_gradients(chunk):
    hidden, head, labels, segments = example()

    def ours(hidden, head):
        return cross_entropy(hidden, head, labels, segments, Z, chunk)[0]

    def definition(hidden, head):
        return cross_entropy_definition(hidden, head, labels, segments, Z)

    expected = jax.jit(jax.value_and_grad(definition, (0, 1)))(hidden, head)
    found = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@settings(max_examples=10)
@given(seed=st.integers(0, 100), supervised=st.sampled_from([0.02, 0.3, 1.0]))
def test_any_number_of_supervised_positions(seed, supervised):
    hidden, head, labels, segments = example(seed, supervised)
    wanted = targets(labels, segments)
    loss, sums = jitted(hidden, head, labels, segments)
    logits = hidden @ head
    normaliser = jax.nn.logsumexp(logits, -1)
    losses = normaliser - jnp.take_along_axis(logits, jnp.maximum(wanted, 0)[..., None], -1)[..., 0]
    assert sums.count.sum() == (wanted >= 0).sum()
    expected = jnp.where(wanted >= 0, losses + Z * normaliser**2, 0).sum() / max(int((wanted >= 0).sum()), 1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    correct = (wanted >= 0) & (logits.argmax(-1) == wanted)
    assert sums.correct.sum() == correct.sum()


@jax.jit
def jitted(hidden, head, labels, segments):
    return cross_entropy(hidden, head, labels, segments, Z, 5)


def test_nothing_supervised_is_zero_with_zero_gradient():
    hidden, head, labels, segments = example()

    def ours(hidden, head):
        return cross_entropy(hidden, head, jnp.full_like(labels, -1), segments, Z, 5)[0]

    loss, gradients = jax.value_and_grad(ours, (0, 1))(hidden, head)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_tasks_are_told_apart():
    hidden, head, labels, segments = example()
    table = np.arange(V) >= 10
    _, sums = cross_entropy(hidden, head, labels, segments, Z, 5, table)
    wanted = np.array(targets(labels, segments))
    assert sums.count.tolist() == [((wanted >= 0) & (wanted < 10)).sum(), (wanted >= 10).sum()]
    means = sums.means()
    both = means["understanding_loss"] * sums.count[0] + means["generation_loss"] * sums.count[1]
    np.testing.assert_allclose(both / sums.count.sum(), means["loss"], rtol=1e-5)


def test_a_position_sees_only_its_own_segments_labels():
    hidden, head, labels, segments = example(supervised=1.0)

    def ours(hidden):
        return cross_entropy(hidden, head, labels, segments, Z, 5)[0]

    gradients = np.array(jnp.abs(jax.grad(ours)(hidden)).sum(-1) > 0)
    assert (gradients == (np.array(targets(labels, segments)) >= 0)).all()


def test_bfloat16_hidden_keeps_float32_sums():
    hidden, head, labels, segments = example()
    exact, _ = cross_entropy(hidden, head, labels, segments, Z, 5)
    loss, _ = cross_entropy(hidden.astype(jnp.bfloat16), head, labels, segments, Z, 5)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, exact, rtol=2e-2)


def test_no_array_holds_all_logits_and_a_frozen_head_has_no_gradient():
    rows, length, vocabulary_size = 4, 256, 4096
    hidden, head = jnp.ones((rows, length, D)), jnp.ones((D, vocabulary_size))
    labels = segments = jnp.ones((rows, length), jnp.int32)

    def ours(hidden, head):
        return cross_entropy(hidden, head, labels, segments, Z, 16)[0]

    text = str(jax.make_jaxpr(jax.grad(ours, (0, 1)))(hidden, head))
    assert f"f32[{rows},{length},{vocabulary_size}]" not in text
    assert f"{rows * length},{vocabulary_size}]" not in text
    frozen = str(jax.make_jaxpr(jax.grad(ours))(hidden, head))
    assert f"f32[1,{D},1,{vocabulary_size}]" in text
    assert f"f32[1,{D},1,{vocabulary_size}]" not in frozen


def test_image_table_names_all_and_only_the_discrete_part():
    names = [*vocabulary.control_names(5), "hello"]
    table = image_token_table(vocabulary.Vocabulary.from_names({n: i for i, n in enumerate(names)}), 64)
    text = [name for name, drawn in zip(names, table) if not drawn]
    assert text == [
        vocabulary.BOS,
        vocabulary.PAD,
        vocabulary.EOS,
        vocabulary.SEP,
        vocabulary.END_OF_TURN,
        "hello",
    ]
    with pytest.raises(ValueError, match="vocab_size is 10"):
        image_token_table(vocabulary.Vocabulary.from_names({n: i for i, n in enumerate(names)}), 10)
