"""Sources as streams of examples, pools and mixtures as streams of rows."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.host_data import DRAWING, QUESTION, TEXT, data_config, with_sequence, write_data
from tests.helpers.tiny_model import CONFIG, noise, tiny_tokenizer
from unitoken_jax.config import SourceConfig
from unitoken_jax.data import mixture, shuffle, sources
from unitoken_jax.data.mixture import Mixture, PackingPool
from unitoken_jax.data.sources import Source
from unitoken_jax.sequence.image import ImageError

TOKENIZER = tiny_tokenizer()
KINDS = [QUESTION, DRAWING, TEXT] * 5


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path, KINDS)


def make_pool(*paths, seed=0, model=CONFIG, weights=None, **changes):
    config = data_config(*paths, **changes)
    sources = [
        Source(source, number, config, model, TOKENIZER, seed) for number, source in enumerate(config.sources)
    ]
    return PackingPool(sources, weights or [1.0] * len(sources), config, seed)


def names(pool, rows):
    return [pool.names(k) for k in rows]


@pytest.mark.parametrize("block", [65536, 4])
def test_an_epoch_holds_every_example_once(data, monkeypatch, block):
    monkeypatch.setattr(mixture, "MAX_BLOCK", block)
    pool = make_pool(data)
    place, orders = 0, []
    for epoch in range(3):
        blocks = range(epoch * pool.blocks_in_epoch(), (epoch + 1) * pool.blocks_in_epoch())
        count = sum(len(pool.block(number).plan) for number in blocks)
        held = [name for row in names(pool, range(place, place + count)) for name in row]
        assert {name[1] for name in held} == {epoch}
        orders.append([name[2] for name in held])
        assert sorted(orders[-1]) == list(range(len(KINDS)))
        place += count
    assert orders[0] != orders[1] != orders[2]


def test_rows_can_be_entered_anywhere(data):
    straight = names(make_pool(data), range(40))
    other = pickle.loads(pickle.dumps(make_pool(data)))
    for k in (37, 3, 11):
        assert other.names(k) == straight[k]
        found = [example.tokens.tolist() for example in other.row(k)]
        made = [other.sources[0].example(*name[1:]).tokens.tolist() for name in straight[k]]
        assert found == made


def test_prompt_dropout(data):
    source = make_pool(data, prompt_dropout=0.5).sources[0]
    stretch = source.slice(0, 60 * len(KINDS))
    drops = np.zeros((60, len(KINDS)), bool)
    drops[stretch.epochs, stretch.indices] = stretch.drops
    drawings = np.array([kind == DRAWING for kind in KINDS])
    assert not drops[:, ~drawings].any()
    assert 0.35 < drops[:, drawings].mean() < 0.65
    assert len(np.unique(drops, axis=0)) > 20
    whole, dropped = source.example(0, 1, False), source.example(0, 1, True)
    assert dropped.tokens[0] == TOKENIZER.vocabulary.begin_of_image
    assert len(dropped.tokens) < len(whole.tokens)
    later = make_pool(data, prompt_dropout=0.5).sources[0].slice(100, 50)
    np.testing.assert_array_equal(later.drops, stretch.drops[100:150])
    np.testing.assert_array_equal(later.lengths, stretch.lengths[100:150])
    assert not make_pool(data, prompt_dropout=0.0).sources[0].slice(0, 100).drops.any()
    assert not make_pool(data, seed=None, prompt_dropout=0.5).sources[0].slice(0, 100).drops.any()


@given(st.integers(1, 5000), st.integers(0, 2**63), st.data())
def test_shuffles_are_permutations_entered_anywhere(count, key, data):
    whole = shuffle.permute_index(np.arange(count), count, key)
    assert sorted(whole.tolist()) == list(range(count))
    first = data.draw(st.integers(0, count - 1))
    np.testing.assert_array_equal(shuffle.permute_index(np.arange(first, count), count, key), whole[first:])


@pytest.mark.slow
def test_shuffles_look_random():
    """Every value goes everywhere, and neighbours part."""
    count, keys = 12, range(6000)
    seen = np.stack([shuffle.permute_index(np.arange(count), count, shuffle.key_of([key])) for key in keys])
    table = np.stack([np.bincount(column, minlength=count) for column in seen.T])
    assert np.abs(table - 500).max() < 100  # more than four standard deviations
    steps = np.diff(shuffle.permute_index(np.arange(100_000), 100_000, 5))
    assert abs(np.mean(np.abs(steps)) / 100_000 - 1 / 3) < 0.01
    coins = shuffle.uniform(np.arange(100_000), 7)
    assert np.abs(np.histogram(coins, 10, (0, 1))[0] - 10_000).max() < 500


def test_examples_of_all_sources_are_packed_together(tmp_path, monkeypatch):
    """Weights are shares of examples then, and no example comes back before all have come."""
    monkeypatch.setattr(mixture, "MAX_BLOCK", 40)
    one = write_data(tmp_path / "one", [TEXT] * 7)
    other = write_data(tmp_path / "other", [QUESTION] * 11)
    pool = make_pool(one, other, weights=[1.0, 3.0])
    rows = names(pool, range(sum(len(pool.block(number).plan) for number in range(11))))
    held = [name for row in rows for name in row]
    assert len(held) == 440
    assert any(len({name[0] for name in row}) == 2 for row in rows)
    for number, (share, size) in enumerate([(110, 7), (330, 11)]):
        mine = sorted((epoch, index) for which, epoch, index, _ in held if which == number)
        assert len(mine) == share
        assert mine[: share // size * size] == [(e, i) for e in range(share // size) for i in range(size)]


def test_a_share_of_a_set_is_always_the_same(tmp_path):
    path = write_data(tmp_path, [TEXT] * 200)
    kept = {}
    for seed in (0, 1):
        config = data_config(sources=(SourceConfig(str(path), ratio=0.3),))
        source = Source(config.sources[0], 0, config, CONFIG, TOKENIZER, seed)
        assert source.skipped == 0
        kept[seed] = set(source.slice(0, len(source)).indices.tolist())
    assert kept[0] == kept[1]
    assert len(kept[0]) == pytest.approx(60, abs=25)
    with pytest.raises(ValueError, match=r"ratio of .* is 2.0; expected more than 0, at most 1"):
        Source(SourceConfig(str(path), ratio=2.0), 0, config, CONFIG, TOKENIZER, 0)


def test_random_crops_change_with_the_epoch_only(tmp_path):
    path = write_data(tmp_path, [QUESTION] * 3)
    model = with_sequence(crop="random")
    made = make_pool(path, model=model).sources[0]
    crops = [[made.example(epoch, i, False).images for i in range(3)] for epoch in range(6)]
    again = make_pool(path, model=model).sources[0].example(4, 2, False).images
    np.testing.assert_array_equal(again, crops[4][2])
    assert any((crops[0][i] != crops[epoch][i]).any() for i in range(3) for epoch in range(1, 6))


def test_decoded_examples_are_kept_within_bounds(data, monkeypatch):
    made = make_pool(data).sources[0]
    first = made.example(0, 0, False)
    assert made.example(3, 0, False) is first
    size = sources._bytes(first)
    monkeypatch.setattr(sources, "CACHE_BYTES", 3 * size)
    for i in range(len(KINDS)):
        made.example(0, i, False)
    assert 0 < made._cached_bytes <= 3 * size
    assert made._cached_bytes == sum(map(sources._bytes, made._cache.values()))
    assert made.example(0, 0, False) is not first
    monkeypatch.setattr(sources, "CACHED_EXAMPLE_BYTES", 10)
    assert make_pool(data).sources[0].example(0, 0, False) is not None


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5))
def test_mixture_keeps_proportions_and_order(weights):
    shares = np.array(weights) / sum(weights)
    mixture = Mixture(weights, [lambda j, s=s: (s, j) for s in range(len(weights))])
    rows = [mixture.row(k) for k in range(1500)]
    counts = np.zeros(len(weights), int)
    for k, (which, place) in enumerate(rows):
        assert place == counts[which]
        assert mixture.rows_before(k) == counts.tolist()
        counts[which] += 1
        if k % 97 == 0:
            assert np.abs(counts - shares * (k + 1)).max() < len(weights) + 3 * (1 + k // 1024)


def test_an_image_that_changes_later_is_noticed(data):
    pool = make_pool(data)
    noise(0, 16, 48).save(data.parent / "data.jsonl-0.png")
    with pytest.raises(ImageError, match=r"data\.jsonl:1: takes .* but .* when it was measured: .* delete"):
        pool.sources[0].example(0, 0, False)


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], [1, 1e-6]])
def test_weights_that_cannot_be_kept(weights):
    with pytest.raises(ValueError, match=r"data\.sources weights"):
        Mixture(weights, [None, None])
