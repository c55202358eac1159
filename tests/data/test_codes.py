"""VQ codes made beforehand, on disk."""

import errno
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.host_data import DRAWING, QUESTION, TEXT, with_sequence, write_data
from tests.helpers.tiny_model import CODES, CONFIG
from unitoken_jax.data import code_shards, codes
from unitoken_jax.data.codes import CodesError, codes_path, read_codes, write_codes
from unitoken_jax.data.tf_example import decode_example, encode_example
from unitoken_jax.sequence.conversation import read_conversations
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


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.binary() | st.lists(st.integers(0, 2**62)).map(np.array), max_size=4))
def test_examples_are_what_tfds_reads(features):
    from tensorflow_datasets.proto import tf_example_pb2

    record = encode_example(features)
    found = decode_example(record)
    parsed = tf_example_pb2.Example.FromString(record).features.feature
    assert found.keys() == features.keys() == set(parsed)
    for name, value in features.items():
        if isinstance(value, bytes):
            assert found[name] == value == parsed[name].bytes_list.value[0]
        else:
            assert found[name].tolist() == value.tolist() == list(parsed[name].int64_list.value)


@pytest.mark.parametrize("record", [b"x", b"\x0a\x05a", b"\x08\x01", b"\x0a\x80"])
def test_other_records_are_refused(record):
    with pytest.raises(ValueError, match="not a record of bytes and integers"):
        decode_example(record)


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
    (path / "about.json").unlink()
    with pytest.raises(CodesError, match=r"c\.codes is damaged"):
        read_codes(path, CONFIG)


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
    conversations = read_conversations(data)
    images = codes.images_to_encode(conversations, CONFIG)
    assert [image.name for image in images] == ["data.jsonl-0.png", "data.jsonl-1.png"]
    continuous = codes.images_to_encode(conversations, with_sequence(encoding="continuous"))
    assert [image.name for image in continuous] == ["data.jsonl-1.png"]
    for image in images:
        expected = discrete_crop(open_image(image.path), (16, 16))
        np.testing.assert_array_equal(codes.crop_to_encode(image, CONFIG), expected)


def test_random_crops_depend_on_name_and_seed_alone(tmp_path):
    images = codes.images_to_encode(read_conversations(write_data(tmp_path, [QUESTION] * 3)), CONFIG)
    config = with_sequence(crop="random")

    def crops(seed, chosen):
        return {image.name: codes.crop_to_encode(image, config, seed) for image in chosen}

    one, other, last = crops(0, images), crops(1, images), crops(0, images[2:])
    np.testing.assert_array_equal(one[images[2].name], last[images[2].name])
    assert any((one[name] != other[name]).any() for name in one)
