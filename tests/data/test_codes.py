"""VQ codes made beforehand, on disk."""

import errno
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.host_data import DRAWING, QUESTION, TEXT, images_with_codes, with_sequence, write_data
from tests.helpers.tiny_model import CODES, CONFIG
from unitoken_jax.data import code_shards, codes
from unitoken_jax.data.code_shards import decode_record, encode_record
from unitoken_jax.data.codes import CodesError, codes_path, read_codes, write_codes
from unitoken_jax.sequence.image import discrete_crop, open_image


def table(*names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, CODES, (4, 4), np.int32) for name in names}


def test_round_trip(tmp_path):
    path = codes_path(tmp_path / "train.jsonl")
    assert path.name == "train.jsonl.codes"
    written = table("b/é.png", "a.png")
    write_codes(path, written, CONFIG, codebook_sha256="x")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    found = pickle.loads(pickle.dumps(read_codes(path, CONFIG)))
    assert sorted(found) == sorted(written)
    for name, value in written.items():
        np.testing.assert_array_equal(found[name], value)
        assert name in found
    assert "c.png" not in found
    assert found.about["codebook_sha256"] == "x"
    assert (found.about["image_size"], found.about["crop"]) == ([16, 16], "center")


def test_tfds_reads_them(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(code_shards, "SHARD", 3)
    written = table(*"abcdefgh")
    write_codes(tmp_path / "x.codes", written, CONFIG)
    assert len(list((tmp_path / "x.codes").glob("*array_record*"))) == 3
    source = tfds.builder_from_directory(tmp_path / "x.codes").as_data_source("train")
    assert len(source) == 8
    for example in source:
        np.testing.assert_array_equal(example["codes"], written[example["name"].decode()])
        assert example["codes"].dtype == np.int32


@given(st.text(), st.lists(st.integers(0, 2**31 - 1)))
def test_a_record_is_read_as_it_was_written(name, codes):
    stored, values = decode_record(encode_record(name, np.array(codes, np.int32)))
    assert (stored, values.tolist(), values.dtype) == (name, codes, np.int32)


def test_a_record_has_the_bytes_of_earlier_releases():
    """Names sorted, integers packed: one record has one encoding, whichever process writes it."""
    codes = b"\n\x10\n\x05codes\x12\x07\x1a\x05\n\x03\x01\xac\x02"
    name = b"\n\r\n\x04name\x12\x05\n\x03\n\x01a"
    assert encode_record("a", np.array([[1], [300]])) == b"\n!" + codes + name


@pytest.mark.parametrize("record", [b"x", b"\x0a\x05a", b"\x08\x01", b"\x0a\x80", b""])
def test_other_records_are_refused(record):
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example|expected one name and its codes"):
        decode_record(record)


def test_an_empty_table(tmp_path):
    write_codes(tmp_path / "c.codes", {}, CONFIG)
    assert read_codes(tmp_path / "c.codes", CONFIG) == {}


def test_a_failed_write_leaves_the_old_ones(tmp_path, monkeypatch):
    path = tmp_path / "c.codes"
    write_codes(path, table("a"), CONFIG)

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(code_shards, "write_metadata", fail)
    with pytest.raises(OSError, match="disk full"):
        write_codes(path, table("a", "b"), CONFIG)
    assert list(read_codes(path, CONFIG)) == ["a"]
    monkeypatch.undo()
    write_codes(path, table("a", "b"), CONFIG)
    assert sorted(read_codes(path, CONFIG)) == ["a", "b"]
    assert [p.name for p in tmp_path.iterdir()] == ["c.codes"]


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "c.codes"
    with pytest.raises(CodesError, match=r"no VQ codes at .*c\.codes: run `unitoken tokenize`"):
        read_codes(path, CONFIG)
    write_codes(path, table("a"), CONFIG)
    for config in (with_sequence(image_size=(24, 24)), with_sequence(crop="random")):
        with pytest.raises(CodesError, match="was made for image_size"):
            read_codes(path, config)
    write_codes(path, {"a": np.full((4, 4), CODES, np.int32)}, CONFIG)
    with pytest.raises(CodesError, match=f"expected .* of 0 to {CODES - 1}"):
        read_codes(path, CONFIG)
    (shard,) = path.glob("*array_record*")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CodesError, match=r"c\.codes is damaged \(shard sizes"):
        read_codes(path, CONFIG)
    for content in ("[]", "{", '{"shards": [3]}', "null"):
        (path / "about.json").write_text(content)
        with pytest.raises(CodesError, match=r"c\.codes is damaged"):
            read_codes(path, CONFIG)
    (path / "about.json").unlink()
    with pytest.raises(CodesError, match=r"c\.codes is damaged"):
        read_codes(path, CONFIG)
    building = tmp_path / "c.codes.building"
    building.mkdir()
    (building / "settings.json").write_text("[")
    with pytest.raises(CodesError, match=r"settings\.json is damaged .* delete .*c\.codes\.building"):
        write_codes(path, table("a"), CONFIG)


def test_a_shard_damaged_inside_is_named(tmp_path):
    write_codes(tmp_path / "c.codes", table("a"), CONFIG)
    (shard,) = (tmp_path / "c.codes").glob("*array_record*")
    content = bytearray(shard.read_bytes())
    content[100:200] = bytes(100)
    shard.write_bytes(content)
    with pytest.raises(CodesError, match=r"array_record-00000-of-00001 is damaged"):
        read_codes(tmp_path / "c.codes", CONFIG)["a"]


def test_distinct_images_and_their_crops(tmp_path):
    data = write_data(tmp_path, [QUESTION, DRAWING, TEXT])
    data.write_text(data.read_text() * 2)
    images = images_with_codes(data)
    assert [image.name for image in images] == ["data.jsonl-0.png", "data.jsonl-1.png"]
    continuous = images_with_codes(data, with_sequence(encoding="continuous"))
    assert [image.name for image in continuous] == ["data.jsonl-1.png"]
    for image in images:
        expected = discrete_crop(open_image(image.path), (16, 16))
        np.testing.assert_array_equal(codes.crop_to_encode(image, CONFIG), expected)


def test_random_crops_depend_on_name_and_seed_alone(tmp_path):
    images = images_with_codes(write_data(tmp_path, [QUESTION] * 3))
    config = with_sequence(crop="random")

    def crops(seed, chosen):
        return {image.name: codes.crop_to_encode(image, config, seed) for image in chosen}

    one, other, last = crops(0, images), crops(1, images), crops(0, images[2:])
    np.testing.assert_array_equal(one[images[2].name], last[images[2].name])
    assert any((one[name] != other[name]).any() for name in one)
