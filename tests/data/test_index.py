"""The length index: what it measures, when it is made again, and what it says about bad rows."""

import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers.host_data import DRAWING, QUESTION, TEXT, with_sequence, write_data
from tests.helpers.processes import is_running
from tests.helpers.tiny_model import CONFIG, WORDS, tiny_tokenizer
from unitoken_jax.config import SourceConfig
from unitoken_jax.data import index, index_build
from unitoken_jax.data.index import open_index
from unitoken_jax.sequence import build
from unitoken_jax.sequence.errors import ConversationError
from unitoken_jax.sequence.image import ImageError
from unitoken_jax.sequence.tokenizer import train_tokenizer

TOKENIZER = tiny_tokenizer()
KINDS = [QUESTION, DRAWING, TEXT] * 4


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path, KINDS)


def make(path, model=CONFIG, tokenizer=TOKENIZER, images="", **settings):
    return open_index(SourceConfig(str(path), images=images), model, tokenizer, **settings)


def test_lengths_are_those_of_the_built_examples(data):
    made = pickle.loads(pickle.dumps(make(data)))
    assert len(made) == len(KINDS)
    for i, kind in enumerate(KINDS):
        conversation = made.conversation(i)
        example = build.build_example(conversation, TOKENIZER, CONFIG)
        *whole, dropped = made.lengths[i].tolist()
        assert tuple(whole) == example.lengths
        assert bool(dropped) == (kind == DRAWING)
        if dropped:
            assert dropped == len(
                build.build_example(conversation, TOKENIZER, CONFIG, drop_prompt=True).tokens
            )
    assert made.bad() == []


def folders(data):
    return {path.name for path in (data.parent / "data.jsonl.index").iterdir() if path.is_dir()}


def test_it_is_made_once_and_again_when_something_changes(data, monkeypatch):
    make(data)
    first = folders(data)
    assert len(first) == 1
    with monkeypatch.context() as patch:
        patch.setattr(index_build, "measure_all", None)  # would fail if called
        make(data)
        os.utime(data)  # copied elsewhere: another time, the same bytes
        make(data)
    make(data, model=with_sequence(encoding="discrete"))
    make(data, tokenizer=train_tokenizer([WORDS], 16, 400, ["what is"]))
    assert len(folders(data)) == 3
    make(data, model=with_sequence(crop="random", text_before_image=" "))  # no length depends on these
    assert len(folders(data)) == 3
    data.write_text(data.read_text().replace("two", "one"))
    fingerprint = make(data).fingerprint()
    assert len(folders(data)) == 4
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:-1], '{"conversations": []}']))
    assert make(data, on_error=lambda error: None).fingerprint() != fingerprint


def test_another_folder_and_the_cache(data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = make(data, folder=str(tmp_path / "elsewhere"))
    assert made.folder.parent.parent == tmp_path / "elsewhere"
    monkeypatch.setattr(os, "access", lambda *_: False)  # what a read-only folder answers (root may write)
    assert make(data).folder.parent.parent == tmp_path / "cache" / "unitoken" / "index"
    assert not (data.parent / "data.jsonl.index").exists()
    remote = index.index_folder(SourceConfig("gs://bucket/train.jsonl"))
    assert remote.parent == tmp_path / "cache" / "unitoken" / "index"
    with pytest.raises(ValueError, match=r"data\.index is gs://bucket/x, a URL"):
        index.index_folder(SourceConfig(str(data)), "gs://bucket/x")


SPOILT = {
    2: ("json", ConversationError, "not valid JSON"),
    4: ("placeholders", ConversationError, r"0 <\|image\|> in the turns but 1 images"),
    6: ("unsupervised", ConversationError, "nothing is to be learnt"),
    7: ("missing_image", ImageError, r"data\.jsonl-6\.png does not exist"),
    8: ("corrupt_image", ImageError, "is not an image"),
    10: ("control_name", ConversationError, "the text contains <s>"),
    11: ("encoding", ConversationError, "not UTF-8"),
    12: ("format", ConversationError, 'expected an object with a list "conversations"'),
}


def spoil(data):
    lines = data.read_bytes().split(b"\n")
    lines[1] = lines[1][:-4]
    lines[3] = lines[3].replace(b"<|image|>", b"")
    lines[5] = json.dumps({"conversations": [{"from": "human", "value": "x"}]}).encode()
    (data.parent / "data.jsonl-6.png").unlink()
    (data.parent / "data.jsonl-7.png").write_bytes(b"")
    lines[9] = lines[9].replace(b"what is", b"what <s> is")
    lines[10] = lines[10].replace(b"a red", b"a \xff")
    lines[11] = b"[]"
    data.write_bytes(b"\n".join(lines))


def test_every_bad_row_is_reported_with_line_and_reason(data, caplog, monkeypatch):
    spoil(data)
    errors = []
    made = make(data, on_error=errors.append)
    assert {int(each.where.rpartition(":")[2]): each.reason for each in made.bad()} == {
        line: reason for line, (reason, _, _) in SPOILT.items()
    }
    for error, (line, (reason, kind, message)) in zip(errors, SPOILT.items(), strict=True):
        assert type(error) is kind
        assert error.reason == reason
        with pytest.raises(kind, match=rf"^{data}:{line}: .*{message}"):
            raise error
    assert (made.lengths[:, 0] == 0).nonzero()[0].tolist() == [line - 1 for line in SPOILT]
    assert len(made.report.read_text().splitlines()) == len(SPOILT)
    with pytest.raises(ConversationError, match=r"data\.jsonl:2: .*\n8 bad rows in all \(1 contr"):
        make(data)
    monkeypatch.setattr(index, "SHOWN", 3)
    errors.clear()
    make(data, on_error=errors.append)
    assert len(errors) == 3
    assert "left out: 8 bad rows" in caplog.text


def test_what_was_repaired_counts_without_a_new_index(data):
    image = data.parent / "data.jsonl-0.png"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(ImageError, match=r"data\.jsonl:1: image .* does not exist"):
        make(data)
    skipping = make(data, on_error=lambda error: None)
    image.write_bytes(content)
    # A run that skips goes on with what it has: its rows must stay the same.
    again = make(data, on_error=lambda error: None)
    assert again.fingerprint() == skipping.fingerprint()
    made = make(data)
    assert made.bad() == []
    assert (made.lengths[:, 0] > 0).all()
    assert made.fingerprint() != skipping.fingerprint()


def test_an_empty_file(tmp_path):
    for name, text in (("a.jsonl", "\n\n"), ("b.json", "[]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConversationError, match="holds no usable conversation"):
            make(tmp_path / name)


def lines_of_text(path, count):
    turns = '[{"from": "human", "value": "what is %d"}, {"from": "gpt", "value": "one"}]'
    path.write_text("".join('{"conversations": ' + turns % i + "}\n" for i in range(count)))


BUILD = """
import sys
from tests.data.test_index import *
make(sys.argv[1], workers=2)
"""


@pytest.mark.slow
def test_killed_it_goes_on_with_what_was_done(tmp_path):
    """Processes that measure die with the one that started them; the finished index is the same."""
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    lines_of_text(path, 60_000)
    lines_of_text(other, 60_000)
    command = [sys.executable, "-c", BUILD, str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment)
    building = tmp_path / "a.jsonl.index"

    def done():
        return sorted(building.glob("*.building/chunk-*.npz"))

    while len(done()) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [  # not multiprocessing's resource tracker
        child for child in children if b"index_build" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(map(is_running, children)):
        time.sleep(0.01)  # until each has ended the chunk it was at
    kept = {chunk: chunk.stat().st_mtime_ns for chunk in done()}
    assert len(kept) < 15
    measured = []
    original = index_build.LengthIndexer.rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            index_build.LengthIndexer,
            "rows",
            lambda self, rows: measured.append(rows) or original(self, rows),
        )
        made = make(path, workers=1)
    assert len(measured) == 15 - len(kept)
    np.testing.assert_array_equal(made.lengths, make(other, workers=1).lengths)
    assert not list(building.glob("*.building"))


def test_processes_share_the_work(tmp_path, monkeypatch):
    """The second of two builders measures the other half; both end with the whole."""
    monkeypatch.setattr(index_build, "CHUNK", 100)
    path = tmp_path / "a.jsonl"
    lines_of_text(path, 1000)
    job = index_build.IndexBuildSpec(SourceConfig(str(path)), CONFIG, TOKENIZER, tmp_path / "job", "k")
    job.folder.mkdir()
    index_build.prepare(job, None)
    one, two = (index_build.LengthIndexer(job, job.folder) for _ in range(2))
    steps = [index_build.chunks_of(job, measurer, i, 2) for i, measurer in enumerate((one, two))]
    order = [next(step) for _ in range(5) for step in steps]
    assert sorted(order) == list(range(10))
    stamps = [job.chunk(i).stat().st_mtime_ns for i in range(10)]
    assert all(len(list(step)) == 5 for step in steps)
    assert stamps == [job.chunk(i).stat().st_mtime_ns for i in range(10)]


def test_another_process_may_be_faster(data, monkeypatch):
    """It finishes, and removes the chunks, while this one is still measuring."""
    measure_all = index_build.measure_all

    def overtaken(job, *rest):
        monkeypatch.setattr(index_build, "measure_all", measure_all)
        make(data)
        index_build.save_array(job.chunk(0), np.zeros(1))

    monkeypatch.setattr(index_build, "measure_all", overtaken)
    assert len(make(data)) == len(KINDS)


def test_another_process_may_be_faster_by_a_moment(data, monkeypatch):
    """It ends between this one's measuring and joining, and leaves nothing to join."""
    join = index_build.join

    def overtaken(job, folder):
        monkeypatch.setattr(index_build, "join", join)
        make(data)
        join(job, folder)

    monkeypatch.setattr(index_build, "join", overtaken)
    assert len(make(data)) == len(KINDS)


def test_a_failing_worker_says_why(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    lines_of_text(path, 9000)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises((RuntimeError, BrokenPipeError)):
        make(path, workers=2)


def test_speed(tmp_path):
    """2,000 small examples with images; a quickstart has 16,000."""
    path = write_data(tmp_path, [QUESTION, DRAWING] * 10)
    path.write_text(path.read_text() * 100)
    start = time.process_time()
    make(path)
    assert time.process_time() - start < 1.5


@pytest.mark.parametrize("name", ["lengths.npy", "records.npy", "bad.jsonl"])
@pytest.mark.parametrize("content", [b"", b"{", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_of_an_index_is_named(tmp_path, name, content):
    path = write_data(tmp_path, [TEXT])
    index = open_index(SourceConfig(str(path)), CONFIG, TOKENIZER)
    (index.folder / name).write_bytes(content)
    if name == "bad.jsonl" and not content:
        assert not open_index(SourceConfig(str(path)), CONFIG, TOKENIZER).bad()
        return
    with pytest.raises(ValueError, match=rf"{name} is damaged .*: delete .* to measure again"):
        open_index(SourceConfig(str(path)), CONFIG, TOKENIZER)
