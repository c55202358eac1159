"""One bad row is one bad row, whatever holds it and however it is damaged; all others are as without it."""

import hashlib
import io
import itertools
import json
import shutil
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.damage import as_json, damaged_bytes, damaged_tree
from tests.helpers.host_data import DRAWING, QUESTION, TEXT, record, write_array_record
from tests.helpers.tiny_model import CONFIG, noise, tiny_tokenizer
from unitoken_jax.config import SourceConfig
from unitoken_jax.data.index import open_index
from unitoken_jax.sequence import build
from unitoken_jax.sequence.errors import RowError

RECORDS = [record(kind, i, f"{i}.png") for i, kind in enumerate((QUESTION, DRAWING, TEXT, QUESTION, TEXT))]
IMAGES = ["0.png", "1.png", "3.png"]
BAD = 1  # the row that is damaged; there are good ones before and behind it
numbers = itertools.count()

# Thousands of small files: some seconds each with the quick profile.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the images of RECORDS."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in IMAGES:
        noise(int(name[0])).save(folder / name)
    return folder


def digest(example) -> str:
    fields = (example.tokens, example.labels, example.image_feature_index, example.crops, *example.images)
    return hashlib.sha256(b"".join(np.ascontiguousarray(field).tobytes() for field in fields)).hexdigest()


def read_all(path, images: str = "") -> tuple[list[str], list[str]]:
    """(digests of all good examples, messages about all that is bad) of a data set, which is taken away."""
    messages: list[Exception] = []
    source = SourceConfig(str(path), images=str(images))
    try:
        index = open_index(source, CONFIG, tiny_tokenizer(), on_error=messages.append)
    except (RowError, OSError) as error:
        return [], [str(error)]
    finally:
        remaining = list(path.parent.glob(f"{path.name}.index"))
    good = []
    for row in range(len(index)):
        try:
            good.append(digest(build.build_example(index.conversation(row), tiny_tokenizer(), CONFIG)))
        except RowError as error:
            messages.append(error)
    for folder in remaining:
        shutil.rmtree(folder)
    return good, [str(message) for message in messages]


def fresh(folder, ending: str):
    """The path of a file that is not there yet."""
    return folder / f"{next(numbers)}{ending}"


@pytest.fixture(scope="module")
def expected(folder):
    """The digests of the good rows."""
    path = fresh(folder, ".jsonl")
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    good, messages = read_all(path)
    assert len(set(good)) == len(RECORDS)
    assert not messages
    return good


def check(path, good, messages, expected, bad=(BAD,)):
    """Every row but the damaged ones is there, and what is bad is said with the file's name, in one line."""
    others = [row for number, row in enumerate(expected) if number not in bad]
    assert [row for row in good if row in others] == others, messages
    assert len(good) >= len(expected) or messages
    for message in messages:
        assert path.name in message
        assert message.isprintable(), message
        assert len(message) < 1500, message


@given(data=st.data())
def test_a_row_of_jsonl(folder, expected, data):
    lines = [json.dumps(row).encode() for row in RECORDS]
    tree = damaged_tree(RECORDS[BAD]).map(as_json)
    lines[BAD] = data.draw(tree | damaged_bytes(lines[BAD]))
    path = fresh(folder, ".jsonl")
    path.write_bytes(b"\n".join(lines))
    good, messages = read_all(path)
    if not lines[BAD].strip():  # an empty line is no row
        expected = expected[:BAD] + expected[BAD + 1 :]
        assert (good, messages) == (expected, [])
    check(path, good, messages, expected, bad=(BAD,) if lines[BAD].strip() else ())
    if b"\n" not in lines[BAD] and b"\r" not in lines[BAD]:
        assert all(f"{path.name}:{BAD + 1}" in message for message in messages), messages


@given(data=st.data())
def test_an_element_of_a_json_list(folder, expected, data):
    elements = [json.dumps(row).encode() for row in RECORDS]
    elements[BAD] = data.draw(damaged_tree(RECORDS[BAD]).map(as_json) | damaged_bytes(elements[BAD]))
    path = fresh(folder, ".json")
    path.write_bytes(b"[" + b",\n".join(elements) + b"]")
    good, messages = read_all(path)
    check(path, good, messages, expected)


@given(data=st.data())
def test_a_record_of_an_array_record_file(folder, expected, data):
    items = [json.dumps(row).encode() for row in RECORDS]
    items[BAD] = data.draw(damaged_tree(RECORDS[BAD]).map(as_json) | damaged_bytes(items[BAD]))
    path = fresh(folder, ".array_record")
    write_array_record(path, items)
    good, messages = read_all(path)
    check(path, good, messages, expected)
    assert all(f"{path.name}:record {BAD}" in message for message in messages), messages


@given(data=st.data())
def test_the_bytes_of_an_array_record_file(folder, expected, data):
    path = fresh(folder, ".array_record")
    write_array_record(path, [json.dumps(row).encode() for row in RECORDS])
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    good, messages = read_all(path)
    assert set(good) <= set(expected)
    check(path, good, messages, expected, bad=range(len(RECORDS)))


@given(data=st.data())
def test_a_member_of_a_tar_shard(folder, expected, data):
    """Damage to a header hides what is behind it, which is said, too."""
    path, shard = fresh(folder, ".jsonl"), fresh(folder, ".tar")
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    with tarfile.open(shard, "w") as tar:
        for name in IMAGES:
            content = (folder / name).read_bytes()
            if name == "1.png" and data.draw(st.booleans()):
                content = data.draw(damaged_bytes(content))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    if shard.read_bytes() == b"" or data.draw(st.booleans()):
        shard.write_bytes(data.draw(damaged_bytes(shard.read_bytes())))
        bad = (0, 1, 3)
    else:
        bad = (1,)
    good, messages = read_all(path, shard)
    others = [row for number, row in enumerate(expected) if number not in bad]
    assert [row for row in good if row in others] == others or not good, messages
    assert len(good) == len(expected) or messages
    assert all(path.name in message or shard.name in message for message in messages), messages


FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "I;16"),
    "BMP": ("1", "L", "P", "RGB"),
    "ICO": ("RGB", "RGBA"),
    "JPEG2000": ("L", "RGB"),
    "PPM": ("1", "L", "RGB"),
    "TGA": ("L", "RGB", "RGBA"),
    "PCX": ("1", "L", "P", "RGB"),
    "DDS": ("RGB", "RGBA"),
    "ICNS": ("RGB", "RGBA"),
    "IM": ("L", "RGB"),
    "SGI": ("L", "RGB"),
    "SPIDER": ("F",),
    "MSP": ("1",),
    "QOI": ("RGB", "RGBA"),
}


@given(data=st.data())
def test_the_bytes_of_an_image(folder, expected, data):
    format = data.draw(st.sampled_from(sorted(FORMATS)))
    mode = data.draw(st.sampled_from(FORMATS[format]))
    buffer = io.BytesIO()
    try:
        noise(7, 32, 32).convert("L" if mode in ("I;16", "F") else "RGB").convert(mode).save(buffer, format)
    except (KeyError, OSError, ValueError):  # a Pillow that was built without it
        return
    name = fresh(folder, ".img")
    name.write_bytes(data.draw(damaged_bytes(buffer.getvalue())))
    records = [*RECORDS[:BAD], RECORDS[BAD] | {"image": name.name}, *RECORDS[BAD + 1 :]]
    path = fresh(folder, ".jsonl")
    path.write_text("\n".join(map(json.dumps, records)))
    good, messages = read_all(path)
    check(path, good, messages, expected)
    assert all(f"{path.name}:{BAD + 1}" in message for message in messages), messages
    assert all(name.name in message for message in messages), messages


def test_pillow_writes_these_formats():
    """What it opens beyond them is opened by plugins that it cannot write a sample for."""
    assert FORMATS.keys() <= Image.SAVE.keys()
