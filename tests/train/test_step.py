"""Train step: learns, freezes, skips, repeats; codes made online."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.helpers.tiny_model import CONFIG as MODEL
from tests.helpers.tiny_model import tiny_params, tiny_tokenizer
from unitoken_jax.config import Config, DataConfig, OptimizerConfig, ParameterGroup, TrainConfig
from unitoken_jax.train.optimizer import peak_rates, schedule, transformation
from unitoken_jax.train.state import create
from unitoken_jax.train.step import make_evaluation_step, make_model, make_objective, make_train_step

ROWS, LENGTH = 8, 24
CONFIG = Config(
    model=dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, dropout=0.1)),
    optimizer=OptimizerConfig(
        groups=(ParameterGroup("^decoder/embed", 0.0), ParameterGroup("^(adapter|decoder)/", 1e-2)),
        warmup_fraction=0.0,
    ),
    train=TrainConfig(steps=20, dtype="float32", remat="none", loss_chunk=16),
)
VOCABULARY = tiny_tokenizer().vocabulary


def make_batch(seed=0):
    """Two segments a row, some soft positions in the first, labels in both."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 60, (ROWS, LENGTH)).astype(np.int32)
    segments = np.repeat([[1] * 14 + [2] * 8 + [0] * 2], ROWS, 0).astype(np.int32)
    positions = np.repeat([[*range(14), *range(8), 0, 0]], ROWS, 0).astype(np.int32)
    image_feature_index = np.full((ROWS, LENGTH), -1, np.int32)
    image_feature_index[:, 2:6] = np.arange(4)
    labels = np.where((image_feature_index < 0) & (rng.random((ROWS, LENGTH)) < 0.5), tokens, -1)
    crops = rng.integers(0, 256, (ROWS, 1, 16, 16, 3)).astype(np.uint8)
    return {
        "tokens": tokens,
        "labels": labels.astype(np.int32),
        "segments": segments,
        "positions": positions,
        "image_feature_index": image_feature_index,
        "crops": crops,
    }


def rates():
    return peak_rates(flatten_dict(tiny_params(), sep="/"), CONFIG.optimizer.groups)


def start():
    return create(tiny_params(), rates(), transformation(CONFIG.optimizer))


@pytest.fixture(scope="module")
def step():
    return make_train_step(make_model(CONFIG, rates()), CONFIG, rates(), VOCABULARY)


def test_runs_that_differ_in_pace_alone_share_a_program(step):
    """Stages II and III then compile once: the cache of compiled programs finds the one of the other."""
    train = dataclasses.replace(CONFIG.train, steps=7)
    optimizer = dataclasses.replace(CONFIG.optimizer, warmup_fraction=0.5)
    config = dataclasses.replace(CONFIG, train=train, optimizer=optimizer)
    slower = {path: rate / 10 for path, rate in rates().items()}
    other = make_train_step(make_model(config, slower), config, slower, VOCABULARY)
    texts = [one.lower(start(), make_batch()).as_text() for one in (step, other)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_learns_one_batch_and_leaves_what_is_frozen(step):
    state, losses = start(), []
    for _ in range(8):
        state, metrics = step(state, make_batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    before, after = (flatten_dict(tree, sep="/") for tree in (tiny_params(), state.tree))
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == set(rates())
    assert not any(path.startswith(("siglip/", "vqgan/", "decoder/embed")) for path in moved)
    assert int(state.step) == 8
    assert int(state.skipped) == 0


def test_metrics_say_what_happened(step):
    batch = make_batch()
    state, metrics = step(start(), batch)
    state, metrics = step(state, batch)
    count = metrics["understanding_tokens"] + metrics["generation_tokens"]
    total = metrics["understanding_loss"] * metrics["understanding_tokens"]
    total += metrics["generation_loss"] * metrics["generation_tokens"]
    np.testing.assert_allclose(total / count, metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["lr"], 1e-2 * schedule(1, 20, 0), rtol=1e-5)
    parts = metrics["grad_norm/adapter"] ** 2 + metrics["grad_norm/decoder"] ** 2
    np.testing.assert_allclose(parts, metrics["grad_norm"] ** 2, rtol=1e-4)
    assert metrics["param_norm/decoder"] > 0
    assert all(value.dtype == jnp.float32 and value.ndim == 0 for value in metrics.values())


def test_dropout_follows_the_step_alone(step):
    first, again, later = start(), start(), start().replace(step=jnp.int32(1))
    losses = [float(step(state, make_batch())[1]["loss"]) for state in (first, again, later)]
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_not_finite_changes_nothing_but_the_counters(step):
    poisoned = start()
    poisoned.params["decoder/lm_head/kernel"] = (
        poisoned.params["decoder/lm_head/kernel"].at[0, 0].set(jnp.nan)
    )
    before = jax.tree.map(np.array, poisoned)
    after, metrics = step(poisoned, make_batch())
    assert not np.isfinite(metrics["loss"])
    assert (int(after.step), int(after.skipped), float(metrics["skipped"])) == (1, 1, 1.0)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, before.opt_state)


@pytest.mark.slow
def test_codes_made_online_are_those_put_in_beforehand():
    evaluate = make_evaluation_step(make_model(CONFIG, rates()), CONFIG, VOCABULARY)
    rng = np.random.default_rng(1)
    batch = make_batch()
    images = rng.integers(0, 256, (ROWS, 1, 16, 16, 3)).astype(np.uint8)
    code_index = np.full((ROWS, LENGTH), -1, np.int32)
    code_index[:, 7:13] = np.arange(6)
    batch["labels"][:, 7:10] = 0  # placeholders of what is to be learnt
    batch["labels"][:, 10:13] = -1
    online = batch | {"images": images, "code_index": code_index}

    from unitoken_jax.model.vqgan import VQModel

    vq, variables = VQModel(CONFIG.model.vq), {"params": tiny_params()["vqgan"]}
    codes = vq.apply(variables, vq.apply(variables, images[:, 0], method="encode"), method="quantize")[1]
    ids = VOCABULARY.code_ids[np.asarray(codes).reshape(ROWS, -1)[:, :6]]
    batch["tokens"][:, 7:13] = ids
    batch["labels"][:, 7:10] = ids[:, :3]
    found, expected = evaluate(start(), online), evaluate(start(), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.slow
def test_accumulated_parts_are_one_batch():
    plain = dataclasses.replace(CONFIG.model, decoder=dataclasses.replace(CONFIG.model.decoder, dropout=0.0))
    found = []
    for parts in (1, 4):
        config = dataclasses.replace(
            CONFIG, model=plain, train=dataclasses.replace(CONFIG.train, accumulate=parts)
        )
        step = make_train_step(make_model(config, rates()), config, rates(), VOCABULARY)
        found.append(step(start(), make_batch()))
    (state, metrics), (again, same) = found
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), metrics, same)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, again.params)


@pytest.mark.slow
def test_no_gradient_is_lost_where_none_is_computed():
    """Stage I: a row whose first tokens go through no backward pass, against the same row as one piece."""
    batch, first = make_batch(), 8
    batch["image_feature_index"] = np.roll(batch["image_feature_index"], first, axis=1)  # from 10 on
    adapter = {path: rate for path, rate in rates().items() if path.startswith("adapter/")}
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, dropout=0.0)),
        data=DataConfig(row_length=LENGTH, row_prefix=first),
    )
    params = flatten_dict(tiny_params(), sep="/")
    trained, frozen = (
        {path: value for path, value in params.items() if (path in adapter) == wanted}
        for wanted in (True, False)
    )

    def run(trains):
        model = make_model(config, trains)
        differentiate = jax.value_and_grad(make_objective(model, config, VOCABULARY), has_aux=True)
        compiled = jax.jit(differentiate).lower(trained, frozen, batch, None).compile()
        return compiled(trained, frozen, batch, None), compiled.cost_analysis()["flops"]

    ((loss, sums), gradients), flops = run(adapter)
    ((expected, counts), whole), more = run(rates())  # as if the decoder were trained: one piece
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sums, counts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradients, whole)
    assert np.abs(gradients["adapter/up/kernel"]).max() > 1e-4
    assert flops < 0.9 * more
