"""The stream of batches: exact resume, any number of processes, mixtures, bad input."""

import dataclasses
import pickle
import time

import numpy as np
import pytest
from host_data import DRAWING, QUESTION, TEXT, batches_equal, data_config, with_sequence, write_data
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CONFIG, noise, tiny_tokenizer

from unitoken_jax.config import SourceConfig
from unitoken_jax.host import codes, mixture, pack, shuffle, source
from unitoken_jax.host.conversation import ConversationError, read_conversations
from unitoken_jax.host.loader import Loader, Validation
from unitoken_jax.host.mixture import Mixture, Pool
from unitoken_jax.host.picture import PictureError
from unitoken_jax.host.source import Source

TOKENIZER = tiny_tokenizer()
KINDS = [QUESTION, DRAWING, TEXT] * 5


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path, KINDS)


def load(config, seed=0, model=CONFIG, **process):
    return Loader(config, model, TOKENIZER, seed, **process)


def take(loader, count):
    found = [next(loader) for _ in range(count)]
    loader.close()
    return found


def whole_batch(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_batches_keep_the_contract(data):
    config = data_config(data)
    batch = take(load(config), 1)[0]
    expected = pack.empty_batch(config.rows, config, CONFIG)
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
        name: (a.shape, a.dtype) for name, a in expected.items()
    }
    assert (batch["labels"] >= 0).any()


def test_resume_is_exact(data):
    config = data_config(data)
    straight = take(load(config), 9)
    loader = load(config)
    states = []
    for expected in straight:
        states.append(loader.state())
        assert batches_equal(next(loader), expected)
    assert states == [4 * step for step in range(9)]
    for step in (0, 5, 8):
        loader.restore(states[step])
        assert loader.state() == states[step]
        assert batches_equal(next(loader), straight[step])
    loader.close()
    assert loader.state() == states[8] + 4
    fresh = load(config)
    fresh.restore(states[5])
    assert batches_equal(take(fresh, 1)[0], straight[5])


@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_processes(data, count):
    config = data_config(data)
    alone = take(load(config), 3)
    shares = [take(load(config, process_index=i, process_count=count), 3) for i in range(count)]
    for step in range(3):
        assert batches_equal(whole_batch([share[step] for share in shares]), alone[step])


def test_state_crosses_process_counts_and_batch_sizes(data):
    config = data_config(data)
    alone = take(load(config), 3)
    loader = load(config, process_index=1, process_count=2)
    take(loader, 1)
    other = load(dataclasses.replace(config, rows=2))
    other.restore(loader.state())
    halves = take(other, 2)
    assert batches_equal(whole_batch(halves), alone[1])


def test_description(data):
    config = data_config(data, prompt_dropout=0.9)
    loader = load(config)
    rows = [loader.pools[0].row(k) for k in range(loader.describe()["rows"])]
    assert loader.describe() == {
        "examples": len(KINDS),
        "skipped": 0,
        "rows": len(rows),
        "tokens": sum(len(example.tokens) for row in rows for example in row),
        "filled": loader.describe()["tokens"] / (len(rows) * config.row_length),
    }


def test_seeds_differ_and_repeat(data):
    config = data_config(data)
    assert batches_equal(take(load(config, 3), 1)[0], take(load(config, 3), 1)[0])
    assert not batches_equal(take(load(config, 3), 1)[0], take(load(config, 4), 1)[0])


@pytest.mark.slow
def test_worker_processes_make_the_same_stream(data):
    config = data_config(data)
    alone = take(load(config), 4)
    loader = load(dataclasses.replace(config, workers=1))
    for expected in alone[:2]:
        assert batches_equal(next(loader), expected)
    state = loader.state()
    loader.close()
    again = load(config)
    again.restore(state)
    assert batches_equal(take(again, 1)[0], alone[2])


@pytest.mark.parametrize("state", [-1, 1.5, True, "3", None])
def test_a_bad_state_is_refused(data, state):
    with pytest.raises(ValueError, match="expected a row number"):
        load(data_config(data)).restore(state)


def make_pool(*paths, seed=0, model=CONFIG, weights=None, **changes):
    config = data_config(*paths, **changes)
    sources = [
        Source(source, number, config, model, TOKENIZER, seed) for number, source in enumerate(config.sources)
    ]
    return Pool(sources, weights or [1.0] * len(sources), config, seed)


def names(pool, rows):
    return [pool.names(k) for k in rows]


@pytest.mark.parametrize("block", [65536, 4])
def test_an_epoch_holds_every_example_once(data, monkeypatch, block):
    monkeypatch.setattr(mixture, "BLOCK", block)
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
    stretch = source.stretch(0, 60 * len(KINDS))
    drops = np.zeros((60, len(KINDS)), bool)
    drops[stretch.epochs, stretch.indices] = stretch.drops
    drawings = np.array([kind == DRAWING for kind in KINDS])
    assert not drops[:, ~drawings].any()
    assert 0.35 < drops[:, drawings].mean() < 0.65
    assert len(np.unique(drops, axis=0)) > 20
    whole, dropped = source.example(0, 1, False), source.example(0, 1, True)
    assert dropped.tokens[0] == TOKENIZER.vocabulary.begin_of_image
    assert len(dropped.tokens) < len(whole.tokens)
    later = make_pool(data, prompt_dropout=0.5).sources[0].stretch(100, 50)
    np.testing.assert_array_equal(later.drops, stretch.drops[100:150])
    np.testing.assert_array_equal(later.lengths, stretch.lengths[100:150])
    assert not make_pool(data, prompt_dropout=0.0).sources[0].stretch(0, 100).drops.any()
    assert not make_pool(data, seed=None, prompt_dropout=0.5).sources[0].stretch(0, 100).drops.any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**63), st.data())
def test_shuffles_are_permutations_entered_anywhere(count, key, data):
    whole = shuffle.shuffled(np.arange(count), count, key)
    assert sorted(whole.tolist()) == list(range(count))
    first = data.draw(st.integers(0, count - 1))
    np.testing.assert_array_equal(shuffle.shuffled(np.arange(first, count), count, key), whole[first:])


def test_shuffles_look_random():
    """Every value goes everywhere, and neighbours part."""
    count, keys = 12, range(6000)
    seen = np.stack([shuffle.shuffled(np.arange(count), count, shuffle.key_of([key])) for key in keys])
    table = np.stack([np.bincount(column, minlength=count) for column in seen.T])
    assert np.abs(table - 500).max() < 100  # more than four standard deviations
    steps = np.diff(shuffle.shuffled(np.arange(100_000), 100_000, 5))
    assert abs(np.mean(np.abs(steps)) / 100_000 - 1 / 3) < 0.01
    coins = shuffle.coins(np.arange(100_000), 7)
    assert np.abs(np.histogram(coins, 10, (0, 1))[0] - 10_000).max() < 500


def test_examples_of_all_sources_are_packed_together(tmp_path, monkeypatch):
    """Weights are shares of examples then, and no example comes back before all have come."""
    monkeypatch.setattr(mixture, "BLOCK", 40)
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
        kept[seed] = set(source.stretch(0, len(source)).indices.tolist())
    assert kept[0] == kept[1]
    assert len(kept[0]) == pytest.approx(60, abs=25)
    with pytest.raises(ValueError, match=r"ratio of .* is 2.0; expected more than 0, at most 1"):
        load(data_config(sources=(SourceConfig(str(path), ratio=2.0),)))


def test_dropped_prompts_reach_the_batch(data):
    batch = take(load(data_config(data, prompt_dropout=1.0)), 1)[0]
    begin = TOKENIZER.vocabulary.begin_of_image
    starts = (batch["positions"] == 0) & (batch["segments"] > 0)
    assert (batch["tokens"][starts] == begin).any()


def test_random_crops_change_with_the_epoch_only(tmp_path):
    path = write_data(tmp_path, [QUESTION] * 3)
    model = with_sequence(crop="random")
    made = make_pool(path, model=model).sources[0]
    crops = [[made.example(epoch, i, False).pictures for i in range(3)] for epoch in range(6)]
    again = make_pool(path, model=model).sources[0].example(4, 2, False).pictures
    np.testing.assert_array_equal(again, crops[4][2])
    assert any((crops[0][i] != crops[epoch][i]).any() for i in range(3) for epoch in range(1, 6))


def test_decoded_examples_are_kept_within_bounds(data, monkeypatch):
    made = make_pool(data).sources[0]
    first = made.example(0, 0, False)
    assert made.example(3, 0, False) is first
    size = source._bytes(first)
    monkeypatch.setattr(source, "CACHE_BYTES", 3 * size)
    for i in range(len(KINDS)):
        made.example(0, i, False)
    assert 0 < made._cached_bytes <= 3 * size
    assert made._cached_bytes == sum(map(source._bytes, made._cache.values()))
    assert made.example(0, 0, False) is not first
    monkeypatch.setattr(source, "CACHED_EXAMPLE_BYTES", 10)
    assert make_pool(data).sources[0].example(0, 0, False) is not None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5))
def test_mixture_keeps_proportions_and_order(weights):
    shares = np.array(weights) / sum(weights)
    mixture = Mixture(weights, [lambda j, s=s: (s, j) for s in range(len(weights))])
    rows = [mixture.row(k) for k in range(1500)]
    counts = np.zeros(len(weights), int)
    for k, (which, place) in enumerate(rows):
        assert place == counts[which]
        counts[which] += 1
        if k % 97 == 0:
            assert np.abs(counts - shares * (k + 1)).max() < len(weights) + 3 * (1 + k // 1024)


def test_a_picture_that_changes_later_is_noticed(data):
    pool = make_pool(data)
    noise(0, 16, 48).save(data.parent / "data.jsonl-0.png")
    with pytest.raises(PictureError, match=r"data\.jsonl:1: takes .* but .* when it was measured: .* delete"):
        pool.sources[0].example(0, 0, False)


def test_the_fingerprint_is_that_of_the_rows(data, tmp_path):
    config = data_config(data)
    first = load(config).fingerprint()
    same = (data_config(data, rows=8, workers=1, index=str(tmp_path / "i")), 0)
    assert load(*same).fingerprint() == first
    for changed in (
        data_config(data, row_crops=7),
        data_config(data, data),
        data_config(data, mixture_start=4),
    ):
        assert load(changed).fingerprint() != first
    assert load(config, seed=1).fingerprint() != first


def test_another_mixture_counts_from_where_it_begins(data, tmp_path):
    loader = load(data_config(data))
    next(loader)
    state = loader.state()
    loader.close()
    other = write_data(tmp_path / "other", [TEXT] * 9)
    changed = load(data_config(other, mixture_start=state))
    assert changed.state() == state
    changed.restore(state)
    assert batches_equal(take(changed, 1)[0], take(load(data_config(other)), 1)[0])
    assert changed.state() == state + 4
    with pytest.raises(ValueError, match=r"run is at row 3, but data\.mixture_start .* row 4: set it to 3"):
        changed.restore(3)


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], [1, 1e-6]])
def test_weights_that_cannot_be_kept(weights):
    with pytest.raises(ValueError, match=r"data\.sources weights"):
        Mixture(weights, [None, None])


def test_mixed_sources(tmp_path):
    one = write_data(tmp_path / "one", [TEXT] * 3)
    other = write_data(tmp_path / "other", [QUESTION] * 20)
    sources = (SourceConfig(str(one), weight=1.0), SourceConfig(str(other), weight=3.0))
    loader = load(data_config(sources=sources))
    batches = take(loader, 4)
    text_only = np.concatenate([(batch["soft_index"] < 0).all(1) for batch in batches])
    assert text_only.sum() == 4
    assert loader.describe()["examples"] == 23


def test_offline_codes(data):
    conversations = read_conversations(data)
    pictures = codes.pictures_to_encode(conversations, CONFIG)
    table = {picture.name: np.full((4, 4), 7, np.int32) for picture in pictures}
    codes.write_codes(codes.codes_path(data), table, CONFIG)
    config = data_config(data, codes="offline")
    batch = take(load(config), 1)[0]
    assert "pictures" not in batch
    assert "code_index" not in batch
    found = TOKENIZER.vocabulary.codes_of_ids[batch["tokens"]]
    assert set(found[found >= 0]) == {7}
    del table[pictures[0].name]
    codes.write_codes(codes.codes_path(data), table, CONFIG)
    with pytest.raises(PictureError, match=r"data\.jsonl:1: no VQ codes for data\.jsonl-0\.png"):
        load(config)


def spoil(path, how):
    lines = path.read_text().splitlines()
    picture = path.parent / "data.jsonl-3.png"
    if how == "truncated":
        picture.write_bytes(picture.read_bytes()[:-200])
    elif how == "missing":
        picture.unlink()
    elif how == "json":
        lines[3] = lines[3][:-5]
    else:
        old, new = {
            "places": ("<|image|>", ""),
            "empty": ('"value": "red blue green circle"', '"value": ""'),
            "control": ("what is", "what <s> is"),
            "long": ("what is", "what is " * 100),
        }[how]
        assert old in lines[3]
        lines[3] = lines[3].replace(old, new)
    path.write_text("\n".join(lines))


BAD = {
    "truncated": (PictureError, "is damaged or truncated"),
    "missing": (PictureError, "does not exist"),
    "json": (ConversationError, "not valid JSON"),
    "places": (ConversationError, r"0 <\|image\|> in the turns but 1 pictures"),
    "empty": (ConversationError, "empty answer"),
    "control": (ConversationError, "the text contains <s>"),
    "long": (ConversationError, r"needs \d+ tokens, a row holds 96: raise data.row_length"),
}


@pytest.mark.parametrize("how", BAD)
def test_bad_input_names_file_and_line_or_is_left_out(how, data, caplog):
    spoil(data, how)
    kind, message = BAD[how]
    with pytest.raises(kind, match=rf"data\.jsonl:4: .*{message}"):
        take(load(data_config(data, rows=8)), 2)
    loader = load(data_config(data, rows=8, on_error="skip"))
    take(loader, 2)
    assert loader.describe()["skipped"] >= 1
    assert any(f"{data}:4: " in line.getMessage() for line in caplog.records)


def test_settings_that_cannot_work(data):
    with pytest.raises(ValueError, match=r"data\.sources is empty"):
        load(data_config())
    with pytest.raises(ValueError, match=r"data\.rows 4 cannot be split over 3"):
        load(data_config(data), process_count=3)
    with pytest.raises(ValueError, match=r"Allowed sides"):
        load(data_config(data), model=with_sequence(picture_size=(17, 16)))
    with pytest.raises(FileNotFoundError, match="no conversation file"):
        load(data_config(data.with_name("none.jsonl")))


def test_validation_is_one_pass_in_a_fixed_order(data):
    config = data_config(validation=(SourceConfig(str(data)), SourceConfig(str(data))), prompt_dropout=1.0)
    validation = Validation(config, CONFIG, TOKENIZER)
    first, again = list(validation), list(validation)
    assert len(first) == len(validation) == len(again)
    assert all(batches_equal(a, b) for a, b in zip(first, again))
    begins = sum(int(((b["positions"] == 0) & (b["segments"] > 0)).sum()) for b in first)
    assert begins == 2 * len(KINDS)
    assert all(b["tokens"].shape == (4, 96) for b in first)
    shares = [list(Validation(config, CONFIG, TOKENIZER, i, 2)) for i in range(2)]
    for step, batch in enumerate(first):
        assert batches_equal(whole_batch([share[step] for share in shares]), batch)
    with pytest.raises(ValueError, match=r"data\.validation is empty"):
        Validation(data_config(data), CONFIG, TOKENIZER)


def test_a_batch_takes_little_cpu(tmp_path):
    """About 100 examples of ~40 tokens; less than 30 ms a batch once pictures are decoded."""
    path = write_data(tmp_path, [QUESTION, DRAWING] * 150)
    config = data_config(path, row_length=512, row_crops=64, row_pictures=16, rows=8)
    loader = load(config, model=with_sequence(resolution="base"))
    for _ in range(8):  # two epochs
        next(loader)
    start = time.process_time()
    examples = sum(int(next(loader)["segments"].max(1).sum()) for _ in range(10))
    spent = (time.process_time() - start) / 10
    loader.close()
    assert examples > 800
    assert spent < 0.03
