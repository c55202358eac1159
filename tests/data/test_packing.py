"""Which examples share a row, and the arrays of rows."""

import dataclasses
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paper_mixture import paper_lengths

from tests.helpers.host_data import data_config
from tests.helpers.tiny_model import CONFIG, noise, tiny_tokenizer
from unitoken_jax import batch as contract
from unitoken_jax.batch import FIELDS, ROW_FIELDS, shapes
from unitoken_jax.config import DataConfig
from unitoken_jax.data import packing
from unitoken_jax.sequence import build
from unitoken_jax.sequence.conversation import make_conversation
from unitoken_jax.sequence.example import Example, ExampleSize
from unitoken_jax.train.loss import targets

ROW = ExampleSize(40, 6, 3, 30)
lengths = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 6), st.integers(0, 3), st.integers(0, 30)),
    min_size=1,
    max_size=300,
).map(lambda values: np.array(values))


@given(lengths, st.none() | st.lists(st.integers(0, 2**31), min_size=1, max_size=3))
def test_every_example_once_and_no_row_overfull(lengths, seed):
    plan = packing.make_plan(lengths, ROW, seed)
    assert sorted(plan.order.tolist()) == list(range(len(lengths)))
    for row in range(len(plan)):
        assert len(plan[row])
        assert (lengths[plan[row]].sum(0) <= np.array(ROW)).all()
    again = packing.make_plan(lengths, ROW, seed)
    np.testing.assert_array_equal(plan.order, again.order)
    np.testing.assert_array_equal(plan.starts, again.starts)


def test_epochs_differ():
    lengths = np.tile([10, 1, 1, 0], (50, 1))
    orders = [packing.make_plan(lengths, ROW, [0, epoch]).order.tolist() for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert packing.make_plan(lengths, ROW, None).order.tolist() == list(range(50))


def test_full_rows_and_speed():
    rng = np.random.default_rng(0)
    lengths = rng.integers([20, 1, 1, 0], [60, 2, 2, 1], (20_000, 4))
    start = time.process_time()
    plan = packing.make_plan(lengths, ExampleSize(512, 16, 16, 512), [0, 0])
    assert time.process_time() - start < 1
    assert lengths[:, 0].sum() / (len(plan) * 512) > 0.97


@pytest.mark.parametrize(
    ("row", "least"), [((8192, 10, 8), {0: 0.97}), ((16384, 20, 16), {0: 0.97}), ((16384, 10, 16), {1: 0.95})]
)
def test_the_papers_mixture_fills_rows(row, least):
    """Of the budget that binds: tokens, or crops."""
    lengths = paper_lengths(30_000)[:, :4]
    assert lengths.max(0).tolist()[1:3] == [5, 1]
    plan = packing.make_plan(lengths, ExampleSize(*row, row[0]), [0, 0])
    assert sorted(plan.order.tolist()) == list(range(len(lengths)))
    for budget, fill in least.items():
        assert lengths[:, budget].sum() / (len(plan) * row[budget]) >= fill


def test_two_budgets_share_rows_well():
    """Rows close by crops as well as by tokens: half text alone, half images."""
    lengths = np.array([[20, 0, 0, 0], [20, 3, 1, 10]] * 100)
    plan = packing.make_plan(lengths, ROW, [1])
    assert len(plan) <= 105


def test_too_large_an_example_is_an_error():
    with pytest.raises(ValueError, match="example 1 does not fit a row"):
        packing.make_plan(np.array([[1, 1, 1, 0], [1, 7, 1, 0]]), ROW, None)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ((97, 0, 0, 0), "needs 97 tokens, a row holds 96: raise data.row_length"),
        ((1, 9, 0, 0), "needs 9 crops, a row holds 8: raise data.row_crops"),
        ((1, 0, 5, 0), "needs 5 images, a row holds 4: raise data.row_images"),
        (
            (96, 0, 0, 81),
            "needs 81 tokens from its first continuous one on, a row holds 80: lower data.row_prefix",
        ),
    ],
)
def test_misfits_say_what_to_raise(lengths, message):
    config = data_config(row_prefix=16)
    assert packing.explain_overflow(ExampleSize(*lengths), config).startswith(message)
    assert packing.explain_overflow(ExampleSize(96, 8, 4, 80), config) is None


def examples():
    turns = ([["what ", noise(0)], ["red"]], [["a red circle"], [noise(1)]], [["how many"], ["two"]])
    return [build.build_example(make_conversation(turn), tiny_tokenizer(), CONFIG) for turn in turns]


def test_the_plan_and_the_row_that_the_module_draws():
    lengths = np.array([[4, 0, 0, 0], [7, 0, 0, 0], [1, 0, 0, 0], [5, 0, 0, 0], [3, 0, 0, 0]])
    plan = packing.make_plan(lengths, ExampleSize(10, 1, 1, 10), None)
    assert [lengths[plan[row], 0].tolist() for row in range(len(plan))] == [[7, 3], [5, 4, 1]]
    none = np.zeros(0, np.uint8)
    first, second = (
        Example(np.zeros(n), np.zeros(n), np.array(index), np.zeros(n), none, none)
        for n, index in ((5, [-1, -1, 0, 1, 2]), (7, [-1] * 7))
    )
    slots = packing.token_slots([first, second], prefix=6)
    assert [slot.tolist() for slot in slots] == [[0, 1, 9, 10, 11], [2, 3, 4, 5, 6, 7, 8]]


def test_the_row_that_the_contract_draws():
    """The table in batch.py: what the loss predicts, and what attention sees."""
    segments, labels = np.array([[1, 1, 1, 2, 2, 0]]), np.array([[-1, -1, 7, -1, 9, -1]])
    assert targets(labels, segments)[0].tolist() == [-1, 7, -1, 9, -1, -1]
    visible = (segments[0][:, None] == segments[0]) & np.tri(6, dtype=bool)
    drawn = [line[37:49] for line in contract.__doc__.splitlines() if re.match(r" {6}\d {6}", line)]
    assert [[line[2 * s : 2 * s + 1] == "x" for s in range(6)] for line in drawn] == visible.tolist()


CONTENT = data_config(row_length=192, row_crops=8, row_images=4)


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 0], [2, 1, 1, 0], []])
def test_a_row_holds_its_examples_side_by_side(order):
    made = [examples()[i] for i in order]
    batch = packing.batch_of([[], made], CONTENT, CONFIG)
    place = crops = images = 0
    for number, example in enumerate(made, 1):
        here = slice(place, place + len(example.tokens))
        place = here.stop
        np.testing.assert_array_equal(batch["tokens"][1, here], example.tokens)
        np.testing.assert_array_equal(batch["labels"][1, here], example.labels)
        assert (batch["segments"][1, here] == number).all()
        np.testing.assert_array_equal(batch["positions"][1, here], np.arange(len(example.tokens)))
        for name, index, start in (
            ("image_feature_index", example.image_feature_index, crops * CONFIG.siglip.patches),
            ("code_index", example.code_index, images * 16),
        ):
            np.testing.assert_array_equal(batch[name][1, here], np.where(index < 0, -1, index + start))
        np.testing.assert_array_equal(batch["crops"][1, crops : crops + len(example.crops)], example.crops)
        crops += len(example.crops)
        held = batch["images"][1, images : images + len(example.images)]
        np.testing.assert_array_equal(held, example.images)
        images += len(example.images)
    padding = {
        "tokens": 0,
        "labels": -1,
        "segments": 0,
        "positions": 0,
        "image_feature_index": -1,
        "code_index": -1,
    }
    for name, value in padding.items():
        assert (batch[name][1, place:] == value).all()
        assert (batch[name][0] == value).all()


@given(st.lists(st.integers(0, 2), max_size=4), st.integers(0, 191))
def test_a_rows_first_places_hold_what_no_continuous_token_precedes(order, prefix):
    made = [examples()[i] for i in order]
    needs = np.sum([example.lengths for example in made], axis=0) if made else np.zeros(4)
    if (needs > packing.row_capacity(dataclasses.replace(CONTENT, row_prefix=prefix))).any():
        return
    batch = packing.batch_of([made], dataclasses.replace(CONTENT, row_prefix=prefix), CONFIG)
    assert (batch["image_feature_index"][0, :prefix] == -1).all()
    found = np.asarray(targets(batch["labels"], batch["segments"]))[0]
    for number, example in enumerate(made, 1):
        here = batch["segments"][0] == number
        np.testing.assert_array_equal(batch["tokens"][0, here], example.tokens)
        np.testing.assert_array_equal(batch["positions"][0, here], np.arange(len(example.tokens)))
        np.testing.assert_array_equal(found[here], [*example.labels[1:], -1])
        whole = here[:prefix].all() or here[:prefix].sum() >= example.prefix
        assert whole or (batch["segments"][0, :prefix] > 0).all()  # else there is no room left


@pytest.mark.parametrize("codes", ["online", "offline"])
def test_fields_shapes_and_dtypes(codes):
    batch = packing.empty_batch(3, dataclasses.replace(CONTENT, codes=codes), CONFIG)
    promised = shapes(3, 192, 8, 16, (4, 16, 16) if codes == "online" else ())
    assert list(batch) == [name for name in FIELDS if name in promised]
    for name, (shape, dtype) in promised.items():
        assert (batch[name].shape, batch[name].dtype) == (shape, dtype)


def test_contract_of_a_real_batch():
    assert shapes(2, 5120, 10, 384)["crops"] == ((2, 10, 384, 384, 3), np.dtype(np.uint8))
    assert set(ROW_FIELDS) < set(FIELDS)
    assert DataConfig().row_length >= 5120  # a five-crop image alone takes 4,760


@pytest.mark.parametrize("changes", [{"row_length": 20}, {"row_crops": 1}, {"row_images": 0}])
def test_an_overfull_row_is_an_error(changes):
    config = dataclasses.replace(CONTENT, **changes)
    with pytest.raises(ValueError, match="do not fit"):
        packing.batch_of([examples()], config, CONFIG)
