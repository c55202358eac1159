"""VQ codes made beforehand, on disk."""

import json

import numpy as np
import pytest
from host_data import DRAWING, QUESTION, TEXT, with_sequence, write_data
from tiny_model import CODES, CONFIG

from unitoken_jax.host import codes
from unitoken_jax.host.codes import CodesError, codes_path, read_codes, write_codes
from unitoken_jax.host.conversation import read_conversations
from unitoken_jax.host.picture import PictureError, discrete_crop, open_picture


def table(*names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, CODES, (4, 4), np.int32) for name in names}


def test_round_trip(tmp_path):
    path = codes_path(tmp_path / "train.jsonl")
    assert path.name == "train.jsonl.codes.npz"
    written = table("b/é.png", "a.png")
    write_codes(path, written, CONFIG, codebook_sha256="x")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    found = read_codes(path, CONFIG)
    assert sorted(found) == sorted(written)
    for name, value in written.items():
        np.testing.assert_array_equal(found[name], value)
    with np.load(path) as file:
        assert json.loads(str(file["about"])) == {
            "picture_size": [16, 16],
            "crop": "center",
            "codebook_sha256": "x",
        }


def test_an_empty_table(tmp_path):
    write_codes(tmp_path / "c.npz", {}, CONFIG)
    assert read_codes(tmp_path / "c.npz", CONFIG) == {}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    write_codes(path, table("a"), CONFIG)

    def fail(*args, **kwargs):
        args[0].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        write_codes(path, table("a", "b"), CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
    assert list(read_codes(path, CONFIG)) == ["a"]


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "c.npz"
    with pytest.raises(CodesError, match=r"no VQ codes at .*c\.npz: run `unitoken tokenize`"):
        read_codes(path, CONFIG)
    write_codes(path, table("a"), CONFIG)
    for config in (with_sequence(picture_size=(24, 24)), with_sequence(crop="random")):
        with pytest.raises(CodesError, match="was made for picture_size"):
            read_codes(path, config)
    write_codes(path, {"a": np.full((4, 4), CODES, np.int32)}, CONFIG)
    with pytest.raises(CodesError, match=f"expected .* of 0 to {CODES - 1}"):
        read_codes(path, CONFIG)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CodesError, match=r"c\.npz is damaged"):
        read_codes(path, CONFIG)
    np.savez(path, other=1)
    with pytest.raises(CodesError, match=r"c\.npz is damaged"):
        read_codes(path, CONFIG)


def test_distinct_pictures_and_their_crops(tmp_path):
    data = write_data(tmp_path, [QUESTION, DRAWING, TEXT])
    data.write_text(data.read_text() * 2)
    conversations = read_conversations(data)
    pictures = codes.pictures_to_encode(conversations, CONFIG)
    assert [picture.name for picture in pictures] == ["data.jsonl-0.png", "data.jsonl-1.png"]
    continuous = codes.pictures_to_encode(conversations, with_sequence(encoding="continuous"))
    assert [picture.name for picture in continuous] == ["data.jsonl-1.png"]
    made = dict(codes.crops_to_encode(pictures, CONFIG))
    for picture in pictures:
        expected = discrete_crop(open_picture(picture.path), (16, 16))
        np.testing.assert_array_equal(made[picture.name], expected)


def test_random_crops_depend_on_name_and_seed_alone(tmp_path):
    pictures = codes.pictures_to_encode(read_conversations(write_data(tmp_path, [QUESTION] * 3)), CONFIG)
    config = with_sequence(crop="random")

    def crops(seed, chosen):
        return dict(codes.crops_to_encode(chosen, config, seed))

    one, other, last = crops(0, pictures), crops(1, pictures), crops(0, pictures[2:])
    np.testing.assert_array_equal(one[pictures[2].name], last[pictures[2].name])
    assert any((one[name] != other[name]).any() for name in one)


def test_bad_pictures_raise_or_are_reported(tmp_path):
    data = write_data(tmp_path, [QUESTION, QUESTION])
    (tmp_path / "data.jsonl-0.png").write_bytes(b"x")
    pictures = codes.pictures_to_encode(read_conversations(data), CONFIG)
    with pytest.raises(PictureError, match=r"jsonl-0\.png"):
        list(codes.crops_to_encode(pictures, CONFIG))
    errors = []
    assert [name for name, _ in codes.crops_to_encode(pictures, CONFIG, on_error=errors.append)] == [
        "data.jsonl-1.png"
    ]
    assert len(errors) == 1
