"""The stream of batches: exact resume, any number of processes, mixtures, bad input."""

import dataclasses
import gc
import os
import pathlib
import time

import numpy as np
import pytest

from tests.helpers.host_data import (
    DRAWING,
    QUESTION,
    TEXT,
    batches_equal,
    data_config,
    images_with_codes,
    with_sequence,
    write_array_record,
    write_data,
    write_tfds,
)
from tests.helpers.tiny_model import CONFIG, tiny_tokenizer
from unitoken_jax.config import SourceConfig
from unitoken_jax.data import codes, packing
from unitoken_jax.data.loader import Loader, Validation
from unitoken_jax.sequence.errors import ConversationError
from unitoken_jax.sequence.image import ImageError

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
    expected = packing.empty_batch(config.rows, config, CONFIG)
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
    maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
    shared = {line.split()[5] for line in maps if "/dev/shm/psm_" in line}
    loader.close()
    gc.collect()
    assert not any(map(os.path.exists, shared))  # what batches came in is freed
    again = load(config)
    again.restore(state)
    assert batches_equal(take(again, 1)[0], alone[2])


@pytest.mark.parametrize("state", [-1, 1.5, True, "3", None])
def test_a_bad_state_is_refused(data, state):
    with pytest.raises(ValueError, match="expected a row number"):
        load(data_config(data)).restore(state)


def test_dropped_prompts_reach_the_batch(data):
    batch = take(load(data_config(data, prompt_dropout=1.0)), 1)[0]
    begin = TOKENIZER.vocabulary.begin_of_image
    starts = (batch["positions"] == 0) & (batch["segments"] > 0)
    assert (batch["tokens"][starts] == begin).any()


def test_the_fingerprint_is_that_of_the_rows(data, tmp_path):
    config = data_config(data)
    first = load(config).fingerprint()
    assert load(data_config(data, rows=8, workers=1, index=str(tmp_path / "i"))).fingerprint() == first
    part = (dataclasses.replace(config.sources[0], ratio=0.5),)
    for changes in ({"row_crops": 7}, {"mixture_start": 4}, {"sources": part}, {"sources": 2 * part}):
        assert load(dataclasses.replace(config, **changes)).fingerprint() != first
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


def test_mixed_sources(tmp_path):
    one = write_data(tmp_path / "one", [TEXT] * 3)
    other = write_data(tmp_path / "other", [QUESTION] * 20)
    sources = (SourceConfig(str(one), weight=1.0), SourceConfig(str(other), weight=3.0))
    loader = load(data_config(sources=sources))
    batches = take(loader, 4)
    text_only = np.concatenate([(batch["image_feature_index"] < 0).all(1) for batch in batches])
    assert text_only.sum() == 4
    assert loader.describe()["examples"] == 23


@pytest.mark.slow
def test_every_kind_of_source_in_one_mixture(tmp_path):
    """From two kinds of processes alike; the second start finds the indexes beside the data."""
    jsonl = write_data(tmp_path / "jsonl", KINDS)
    records = write_data(tmp_path / "records", KINDS)
    write_array_record(tmp_path / "records" / "x.array_record", records.read_bytes().splitlines())
    rows = "".join(f"data.jsonl-0.png,red circle {i}\n" for i in range(9))
    (tmp_path / "jsonl" / "captions.csv").write_text("file_name,text\n" + rows)
    sources = (
        SourceConfig(str(jsonl)),
        SourceConfig(str(tmp_path / "jsonl"), captions="draw"),
        SourceConfig(str(tmp_path / "records" / "*array_record*")),
        SourceConfig(str(write_tfds(tmp_path, 9)), mapping="tests.helpers.host_data:tfds_conversation"),
    )
    config = data_config(sources=sources, mix="examples")
    alone = take(load(config), 5)
    other = take(load(dataclasses.replace(config, workers=1)), 5)
    assert all(batches_equal(a, b) for a, b in zip(alone, other))
    loader = load(config)
    held = [name for k in range(60) for name in loader.names(k)]
    counts = [sum(name[0] == source for name in held) for source in range(4)]
    assert max(counts) - min(counts) < 40
    assert loader.describe()["examples"] == 2 * len(KINDS) + 2 * 9


def test_offline_codes(data):
    table = {image.name: np.full((4, 4), 7, np.int32) for image in images_with_codes(data)}
    codes.write_codes(codes.codes_path(data), table, CONFIG)
    config = data_config(data, codes="offline")
    batch = take(load(config), 1)[0]
    assert "images" not in batch
    assert "code_index" not in batch
    found = TOKENIZER.vocabulary.codes_of_ids[batch["tokens"]]
    assert set(found[found >= 0]) == {7}
    del table["data.jsonl-0.png"]
    codes.write_codes(codes.codes_path(data), table, CONFIG)
    with pytest.raises(ImageError, match=r"data\.jsonl:1: no VQ codes for data\.jsonl-0\.png"):
        load(config)


def spoil(path, how):
    lines = path.read_text().splitlines()
    image = path.parent / "data.jsonl-3.png"
    if how == "truncated":
        image.write_bytes(image.read_bytes()[:-200])
    elif how == "missing":
        image.unlink()
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
    "truncated": (ImageError, "is damaged or truncated"),
    "missing": (ImageError, "does not exist"),
    "json": (ConversationError, "not valid JSON"),
    "places": (ConversationError, r"0 <\|image\|> in the turns but 1 images"),
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
        load(data_config(data), model=with_sequence(image_size=(17, 16)))
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
    """About 100 examples of ~40 tokens; less than 30 ms a batch once images are decoded."""
    path = write_data(tmp_path, [QUESTION, DRAWING] * 150)
    config = data_config(path, row_length=512, row_crops=64, row_images=16, rows=8)
    loader = load(config, model=with_sequence(resolution="base"))
    for _ in range(8):  # two epochs
        next(loader)
    start = time.process_time()
    examples = sum(int(next(loader)["segments"].max(1).sum()) for _ in range(10))
    spent = (time.process_time() - start) / 10
    loader.close()
    assert examples > 800
    assert spent < 0.03
