"""Whatever a data set of millions holds, through the whole pipeline: odd images, cut-off shards, a full
disk."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import traceback
import zlib

import numpy as np
import pytest
from PIL import Image, features

from tests.helpers.host_data import data_config, tar_name, write_array_record, write_tar
from tests.helpers.tiny_model import CONFIG, noise, tiny_tokenizer
from unitoken_jax.config import SourceConfig
from unitoken_jax.data import codes, sources
from unitoken_jax.data.index import open_index
from unitoken_jax.data.loader import Loader
from unitoken_jax.data.sources import Source
from unitoken_jax.sequence import build
from unitoken_jax.sequence.errors import RowError
from unitoken_jax.sequence.image import ImageError

TOKENIZER = tiny_tokenizer()


def encoded(image, kind, **settings):
    out = io.BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


def png_header(width, height):
    """A PNG file that promises `width` x `height` px and holds none."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(1, 48, 16), "JPEG", exif=exif)


# name: (content, what the index says of it: None is good)
IMAGES = {
    "animated.gif": (
        encoded(noise(2), "GIF", save_all=True, append_images=[noise(3)], duration=5, loop=0),
        None,
    ),
    "cmyk.jpg": (encoded(noise(4).convert("CMYK"), "JPEG"), None),
    "grey16.png": (
        encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99), "PNG"),
        None,
    ),
    "turned.jpg": (turned(), None),
    "a_png.jpg": (encoded(noise(5, 40, 16), "PNG"), None),
    "pixel.png": (encoded(noise(6, 1, 1), "PNG"), None),
    "thin.png": (encoded(noise(7, 100, 1), "PNG"), None),
    "tall.png": (encoded(noise(8, 3, 300), "PNG"), None),
    "thinner.png": (encoded(noise(9, 101, 1), "PNG"), "sides may differ 100 times at most"),
    "bomb.png": (png_header(60_000, 60_000), "could be decompression bomb"),
    "empty.png": (b"", "is not an image Pillow can open"),
    "text.png": (b"no image", "is not an image Pillow can open"),
    "none.png": (None, "does not exist"),
}


def write_set(folder, in_tar):
    names = list(IMAGES)
    turns = [{"from": "human", "value": "<image>what is this ?"}, {"from": "gpt", "value": "red"}]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"image": n, "conversations": turns}) + "\n" for n in names))
    with tarfile.open(folder / "p.tar", "w") as tar:
        for image, (content, _) in IMAGES.items():
            if content is None:
                continue
            if in_tar:
                info = tarfile.TarInfo(image)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                (folder / image).write_bytes(content)
    return SourceConfig(str(path), images=str(folder / "p.tar") if in_tar else "")


@pytest.mark.parametrize("in_tar", [False, True])
def test_odd_images(tmp_path, in_tar):
    """What the header promises is what is built; what is bad is told from the header."""
    index = open_index(write_set(tmp_path, in_tar), CONFIG, TOKENIZER, on_error=lambda error: None)
    bad = {each.row: each.message for each in index.bad()}
    for row, (image, (_, problem)) in enumerate(IMAGES.items()):
        if problem is None:
            example = build.build_example(index.conversation(row), TOKENIZER, CONFIG)
            assert example.lengths == tuple(index.lengths[row, :4].tolist()), image
        else:
            assert problem in bad.pop(row)
    assert not bad


def nested(depth):
    """A JSON text of so many lists in each other."""
    return "[" * depth + "]" * depth


# name: (a JSON record, what the index says of it); what one row says cannot be foreseen.
TURNS = '[{"from": "human", "value": "<image>what ?"}, {"from": "gpt", "value": "red"}]'
ODD_ROWS = {
    "surrogate": (
        """{"conversations": [{"from": "human", "value": "nice \\ud83d"}, """
        """{"from": "gpt", "value": "x"}]}""",
        "the question has 'nice \\ud83d'",
    ),
    "surrogate in an answer": (
        """{"conversations": [{"from": "human", "value": "a"}, """
        """{"from": "gpt", "value": "\\udc80"}]}""",
        "the answer has '\\udc80'",
    ),
    "surrogate in a name": (f'{{"image": "\\ud83d.png", "conversations": {TURNS}}}', "does not exist"),
    "surrogate as a role": ("""{"conversations": [{"from": "\\ud83d", "value": "a"}]}""", "turn 1 is from"),
    "list as a role": ("""{"conversations": [{"from": ["human"], "value": "a"}]}""", "is from ['human']"),
    "number as a text": ("""{"conversations": [{"from": "human", "value": 5}]}""", "turn 1 must be"),
    "digits": (f'{{"id": {"7" * 5000}, "image": "a.png", "conversations": {TURNS}}}', "limit (4300 digits)"),
    "depth": (f'{{"id": {nested(100_000)}, "image": "a.png", "conversations": {TURNS}}}', "recursion depth"),
    "depth of an image": (f'{{"image": {nested(500)}, "conversations": {TURNS}}}', "must be a path"),
    "URL": (
        f'{{"image": "data:image/png;base64,{"A" * 5000}", "conversations": {TURNS}}}',
        '"image" holds a URL, data:image/png;base64,',
    ),
    "long name": (f'{{"image": "{"b" * 5000}", "conversations": {TURNS}}}', "characters) "),
    "NUL in a name": (f'{{"image": "a\\u0000.png", "conversations": {TURNS}}}', "a\\x00.png"),
    "newline in a name": (f'{{"image": "a\\n.png", "conversations": {TURNS}}}', "image "),
    "folder": (f'{{"image": ".", "conversations": {TURNS}}}', "does not exist"),
    "pipe": (f'{{"image": "pipe.png", "conversations": {TURNS}}}', "does not exist"),
    "link to itself": (f'{{"image": "loop.png", "conversations": {TURNS}}}', "does not exist"),
    "no object": ("[1, 2]", "expected an object"),
    "no list": ("""{"conversations": {}}""", "expected an object"),
    "nothing": ("null", "expected an object"),
}


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory):
    """A folder of odd files beside a good one, and the same in a tar shard, as far as that can hold them."""
    folder = tmp_path_factory.mktemp("odd")
    noise(0).save(folder / "a.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    with tarfile.open(folder / "p.tar", "w") as tar:
        tar.add(folder / "a.png", "a.png")
        tar.add(folder / "a.png", "caf\udce9.png")  # a name of bytes that are no UTF-8
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "json", "array_record"])
@pytest.mark.parametrize("images", ["", "p.tar"])
def test_an_odd_row_is_named_and_changes_no_other(tmp_path, odd_images, kind, images):
    """Each row alone between good ones: it is bad, in one short line, and the good ones are as without it."""
    good = f'{{"image": "a.png", "conversations": {TURNS}}}'
    texts = [good]
    for text, _ in ODD_ROWS.values():
        texts += [text, good]
    path = tmp_path / f"data.{kind}"
    if kind == "array_record":
        write_array_record(path, [text.encode() for text in texts])
    else:
        path.write_text("[" + ",\n".join(texts) + "]" if kind == "json" else "\n".join(texts))
    source = SourceConfig(str(path), images=str(odd_images / images), kind="auto")
    index = open_index(source, CONFIG, TOKENIZER, on_error=lambda error: None)
    assert len(index) == len(texts)
    bad = {each.row: each for each in index.bad()}
    assert sorted(bad) == list(range(1, len(texts), 2))
    for row, (name, (_, problem)) in zip(sorted(bad), ODD_ROWS.items()):
        message = bad[row].message
        assert problem in message, name
        where = f"{path}:record {row}" if kind == "array_record" else f"{path}:{row + 1}"
        assert message.startswith(f"{where}: "), name
        assert len(message) < len(where) + 600, name
        assert message.isprintable(), name
    alone = build.build_example(index.conversation(0), TOKENIZER, CONFIG)
    for row in range(2, len(texts), 2):
        example = build.build_example(index.conversation(row), TOKENIZER, CONFIG)
        np.testing.assert_array_equal(example.tokens, alone.tokens)
        np.testing.assert_array_equal(index.lengths[row], index.lengths[0])


def spoilt_avif():
    """An AVIF file with a good header and no pixels behind it."""
    content = encoded(noise(1, 64, 48), "AVIF")
    start = content.index(b"mdat") + 4
    return content[:start] + bytes(len(content) - start)


def write_questions(folder, images):
    """A JSONL file with a question about each of these files."""
    path = folder / "data.jsonl"
    path.write_text("".join(f'{{"image": "{image}", "conversations": {TURNS}}}\n' for image in images))
    return path


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_pixels_that_fail_when_they_are_decoded_are_one_bad_row(tmp_path, caplog):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "b.avif").write_bytes(spoilt_avif())
    path = write_questions(tmp_path, ["a.png", "b.avif", "a.png"])
    loader = Loader(data_config(path, on_error="skip"), CONFIG, TOKENIZER, 0)
    batches = [next(loader) for _ in range(4)]
    loader.close()
    assert all((batch["labels"] >= 0).any() for batch in batches)
    assert "left out: " in caplog.text
    assert "data.jsonl:2: " in caplog.text
    with pytest.raises(ImageError, match=r"data\.jsonl:2: .*b\.avif is damaged or truncated"):
        Source(SourceConfig(str(path)), 0, data_config(), CONFIG, TOKENIZER, 0).example(0, 1, False)


def test_a_damaged_record_of_codes_is_one_bad_row(tmp_path, caplog):
    for name in ("a.png", "b.png"):
        noise(0).save(tmp_path / name)
    path = write_questions(tmp_path, ["a.png", "b.png"])
    table = {name: np.full((4, 4), 7, np.int32) for name in ("a.png", "b.png")}
    codes.write_codes(codes.codes_path(path), table, CONFIG)
    (shard,) = codes.codes_path(path).glob("*array_record*0001")
    content = shard.read_bytes()
    at = content.index(b"b.png")
    shard.write_bytes(content[:at] + b"x" + content[at + 1 :])
    settings = data_config(codes="offline", on_error="skip")
    source = Source(SourceConfig(str(path)), 0, settings, CONFIG, TOKENIZER, 0)
    assert source.example(0, 0, False) is not None
    assert source.example(0, 1, False) is None
    assert re.search(r"data\.jsonl:2: .*array_record.* is damaged", caplog.text)


def test_a_run_whose_every_row_fails_ends(tmp_path, monkeypatch):
    """Its images went away, say: it would go on for ever with nothing to learn."""
    monkeypatch.setattr(sources, "HOPELESS", 5)
    noise(0).save(tmp_path / "a.png")
    path = write_questions(tmp_path, ["a.png", "a.png"])
    source = Source(SourceConfig(str(path)), 0, data_config(on_error="skip"), CONFIG, TOKENIZER, 0)
    assert source.example(0, 0, False) is not None
    (tmp_path / "a.png").unlink()
    assert [source.example(epoch, 1, False) for epoch in range(4)] == [None] * 4
    with pytest.raises(ImageError, match=r"(?s)data\.jsonl:2: .*does not exist.*5 rows one after another"):
        source.example(4, 1, False)


def test_a_fault_of_our_own_shows_where_it_is(tmp_path, monkeypatch):
    """With --debug, which shows the traceback; the row is named nevertheless."""

    def broken(*args):
        raise KeyError("our own")

    noise(0).save(tmp_path / "a.png")
    path = write_questions(tmp_path, ["a.png"])
    monkeypatch.setattr(build.anyres, "feature_layout", broken)
    with pytest.raises(RowError, match=r"data\.jsonl:1: cannot be used \(KeyError: 'our own'\)") as raised:
        open_index(SourceConfig(str(path)), CONFIG, TOKENIZER)
    assert "in broken" in "".join(traceback.format_exception(raised.value))


def test_rows_of_a_cut_off_tar_shard_are_left_out(tmp_path, caplog):
    write_tar(tmp_path / "p.tar", range(0, 12, 2))
    whole = (tmp_path / "p.tar").read_bytes()
    with tarfile.open(tmp_path / "p.tar") as tar:
        cut = tar.getmembers()[4].offset_data + 100
    (tmp_path / "p.tar").write_bytes(whole[:cut])
    turns = [{"from": "human", "value": "<image>what ?"}, {"from": "gpt", "value": "red"}]
    lines = [json.dumps({"image": tar_name(i), "conversations": turns}) for i in range(0, 12, 2)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = SourceConfig(str(tmp_path / "a.jsonl"), images=str(tmp_path / "*.tar"))
    with pytest.raises(ValueError, match=r"p\.tar is truncated within 8\.png \(member 5\): copy"):
        Loader(data_config(sources=(source,)), CONFIG, TOKENIZER, 0)
    loader = Loader(data_config(sources=(source,), on_error="skip"), CONFIG, TOKENIZER, 0)
    assert loader.describe()["examples"] == 4
    assert loader.describe()["skipped"] == 2
    assert "p.tar is truncated" in caplog.text
    assert "a.jsonl:5: image 8.png" in caplog.text


# A file may not grow beyond so many bytes: what a full disk looks like to a program.
FULL = """
import json, resource, signal, sys
from tests.data.test_bad_input import *
from tests.helpers.host_data import *
from tests.helpers.tiny_model import tiny_model
from unitoken_jax.generate.tokenize import tokenize
from unitoken_jax.data import code_shards

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def attempt(function):
    try:
        function()
    except OSError as error:
        print(json.dumps(str(error)))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = pathlib.Path(sys.argv[1])
code_shards.SHARD = 40
data = write_data(folder, [QUESTION] * 100)
tiny_model()
write, written = code_shards.write_shard, []

def full_at_the_second(place, shard, count, codes, left_out):
    limit(500 if shard == 1 and not written else -1)
    try:
        write(place, shard, count, codes, left_out)
    finally:
        limit(-1)

code_shards.write_shard = full_at_the_second
attempt(lambda: tokenize(tiny_model(), data))
building = folder / "data.jsonl.codes.building"
first = building / "codes-train.array_record-00000-of-00003"
print(json.dumps([sorted(p.name for p in building.glob("*array_record*")), first.stat().st_mtime_ns]))
written.append(1)
path = tokenize(tiny_model(), data)
print((path / first.name).stat().st_mtime_ns)
limit(300)
attempt(lambda: open_index(SourceConfig(str(data)), CONFIG, TOKENIZER))
limit(-1)
print(len(open_index(SourceConfig(str(data)), CONFIG, TOKENIZER)))
"""


@pytest.mark.slow
def test_a_full_disk_is_said_and_costs_nothing_that_was_written(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", "import pathlib" + FULL, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    codes, there, kept, index, rows = map(json.loads, done.stdout.splitlines())
    for message, file in ((codes, "codes-train.array_record-00001-of-00003"), (index, "records.npy")):
        assert "no space left while writing" in message
        assert file in message
        assert "repeat the command to go on" in message
    assert there[0] == [
        "codes-train.array_record-00000-of-00003",
        "codes-train.array_record-00000-of-00003.names.npz",
    ]
    assert there[1] == kept
    assert rows == 100
