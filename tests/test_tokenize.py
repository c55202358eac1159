"""VQ codes of a data set, written once."""

import json

import numpy as np
import pytest
from tiny_model import CONFIG, noise, tiny_model

from unitoken_jax.generate.image import encode_pictures
from unitoken_jax.generate.tokenize import tokenize
from unitoken_jax.host.codes import codes_path, read_codes
from unitoken_jax.host.picture import discrete_crop, open_picture


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for i in range(3):
        noise(i, 20 + i, 16).save(folder / "pictures" / f"{i}.png")
        turns = [{"from": "human", "value": "<|image|>what ?"}, {"from": "gpt", "value": "this"}]
        lines.append(json.dumps({"conversations": turns, "image": f"pictures/{i}.png"}))
    path = folder / "train.jsonl"
    path.write_text("\n".join([*lines, lines[0]]) + "\n")
    return path


def test_each_picture_once_beside_the_data(data):
    path = tokenize(tiny_model(), data, batch=2)
    assert path == codes_path(data)
    codes = read_codes(path, CONFIG)
    assert sorted(codes) == [f"pictures/{i}.png" for i in range(3)]
    for name, found in codes.items():
        crop = discrete_crop(open_picture(data.parent / name), CONFIG.sequence.picture_size)
        np.testing.assert_array_equal(found, encode_pictures(tiny_model(), crop[None])[0])


def test_another_folder_gets_the_data_file_too(data, tmp_path):
    path = tokenize(tiny_model(), data, tmp_path / "out" / "here")
    assert path == codes_path(tmp_path / "out" / "here" / "train.jsonl")
    assert (tmp_path / "out" / "here" / "train.jsonl").read_text() == data.read_text()
    assert not codes_path(data).exists()


def test_a_bad_picture_stops_it_before_anything_is_written_or_is_left_out(data):
    (data.parent / "pictures" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.png"):
        tokenize(tiny_model(), data)
    assert not codes_path(data).exists()
    errors = []
    codes = read_codes(tokenize(tiny_model(), data, on_error=errors.append), CONFIG)
    assert len(codes) == 2
    assert "1.png" in str(errors[0])
