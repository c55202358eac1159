"""VQ codes of a data set, written once."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers.host_data import DRAWING, QUESTION, data_config, tar_name, write_data, write_tar
from tests.helpers.tiny_model import CONFIG, noise, tiny_model, tiny_tokenizer
from unitoken_jax.config import SourceConfig
from unitoken_jax.data import code_shards
from unitoken_jax.data.code_shards import CodesError
from unitoken_jax.data.codes import codes_path, read_codes
from unitoken_jax.data.loader import Loader
from unitoken_jax.generate.tokenize import tokenize
from unitoken_jax.generate.vq import encode_images
from unitoken_jax.sequence.image import discrete_crop, open_image


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(3):
        noise(i, 20 + i, 16).save(folder / "images" / f"{i}.png")
        turns = [{"from": "human", "value": "<|image|>what ?"}, {"from": "gpt", "value": "this"}]
        lines.append(json.dumps({"conversations": turns, "image": f"images/{i}.png"}))
    path = folder / "train.jsonl"
    path.write_text("\n".join([*lines, lines[0]]) + "\n")
    return path


def test_each_image_once_beside_the_data(data):
    path = tokenize(tiny_model(), data, batch=2)
    assert path == codes_path(data)
    codes = read_codes(path, CONFIG)
    assert sorted(codes) == [f"images/{i}.png" for i in range(3)]
    for name, found in codes.items():
        crop = discrete_crop(open_image(data.parent / name), CONFIG.sequence.image_size)
        np.testing.assert_array_equal(found, encode_images(tiny_model(), crop[None])[0])


def test_another_folder_gets_the_data_file_too(data, tmp_path):
    path = tokenize(tiny_model(), data, tmp_path / "out" / "here")
    assert path == codes_path(tmp_path / "out" / "here" / "train.jsonl")
    assert (tmp_path / "out" / "here" / "train.jsonl").read_text() == data.read_text()
    assert not codes_path(data).exists()


def test_a_bad_image_stops_it_before_anything_is_written_or_is_left_out(data):
    (data.parent / "images" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.png"):
        tokenize(tiny_model(), data)
    assert not codes_path(data).exists()
    errors = []
    codes = read_codes(tokenize(tiny_model(), data, on_error=errors.append), CONFIG)
    assert len(codes) == 2
    assert "1.png" in str(errors[0])
    (left_out,) = (codes_path(data) / "left_out.jsonl").read_text().splitlines()
    assert json.loads(left_out)["name"] == "images/1.png"


def test_a_folder_of_images_keeps_its_codes_beside_its_file(data):
    """There training looks for them, whichever of the captions' tasks it then has."""
    rows = "".join(f"images/{i}.png,a circle\n" for i in range(3))
    (data.parent / "captions.csv").write_text("file_name,text\n" + rows)
    assert tokenize(tiny_model(), data.parent) == data.parent / "captions.csv.codes"
    sources = (SourceConfig(str(data.parent), captions="draw"),)
    loader = Loader(data_config(sources=sources, codes="offline"), CONFIG, tiny_tokenizer(), 0)
    assert loader.describe()["examples"] == 3


def content(path):
    return {each.name: each.read_bytes() for each in path.iterdir()}


KILLED = """
import sys, time
from tests.generate.test_tokenize import *
from tests.helpers.tiny_model import tiny_model
code_shards.SHARD = 4
write = code_shards.write_shard
def slowly(*arguments):
    time.sleep(0.3)
    write(*arguments)
code_shards.write_shard = slowly
tokenize(tiny_model(), sys.argv[1], batch=3)
"""


@pytest.mark.slow
def test_killed_it_goes_on_and_the_shards_have_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(code_shards, "SHARD", 4)
    data = write_data(tmp_path / "killed", [QUESTION, DRAWING] * 12)
    whole = write_data(tmp_path / "whole", [QUESTION, DRAWING] * 12)
    expected = content(tokenize(tiny_model(), whole, batch=3))
    building = codes_path(data).with_name(codes_path(data).name + ".building")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(data)], env=environment)
    while len(list(building.glob("codes-train.array_record-?????-of-?????"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not codes_path(data).exists()
    shards = sorted(building.glob("codes-train.array_record-?????-of-00006"))
    times = [shard.stat().st_mtime_ns for shard in shards]
    assert 2 <= len(shards) < 6
    path = tokenize(tiny_model(), data, batch=3)
    assert content(path) == expected
    assert [(path / shard.name).stat().st_mtime_ns for shard in shards] == times
    assert not building.exists()


def test_processes_share_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(code_shards, "SHARD", 2)
    data = write_data(tmp_path / "a", [QUESTION] * 9)
    other = write_data(tmp_path / "b", [QUESTION] * 9)
    path = tokenize(tiny_model(), data, share=(1, 2))
    assert not path.exists()
    with pytest.raises(CodesError, match=r"codes\.building holds the shards .* another encoding: delete it"):
        tokenize(tiny_model(encoding="continuous"), data)
    assert tokenize(tiny_model(), data, share=(0, 2)).exists()
    assert content(path) == content(tokenize(tiny_model(), other))
    before = path.stat().st_mtime_ns
    tokenize(tiny_model(), data, share=(1, 2))  # done already
    assert path.stat().st_mtime_ns == before


def test_images_in_tar_shards_and_codes_elsewhere(tmp_path):
    write_tar(tmp_path / "p.tar", range(4))
    turns = [{"from": "human", "value": "<image>what ?"}, {"from": "gpt", "value": "this"}]
    rows = [json.dumps({"conversations": turns, "image": tar_name(i)}) for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    source = SourceConfig(str(tmp_path / "a.jsonl"), images=str(tmp_path / "*.tar"))
    path = tokenize(tiny_model(), source, tmp_path / "out")
    found = read_codes(path, CONFIG)
    for i in range(4):
        crop = discrete_crop(noise(i, 30 + i, 20), CONFIG.sequence.image_size)
        np.testing.assert_array_equal(found[tar_name(i)], encode_images(tiny_model(), crop[None])[0])
    source = SourceConfig(source.path, images=source.images, codes=str(path))
    loader = Loader(data_config(sources=(source,), codes="offline"), CONFIG, tiny_tokenizer(), 0)
    assert (next(loader)["image_feature_index"] >= 0).any()
    loader.close()


def test_online_and_offline_codes_give_the_same_batches(tmp_path):
    """Once the device has put the codes where `code_index` says."""
    data = write_data(tmp_path, [QUESTION, DRAWING] * 8)
    tokenize(tiny_model(), data)
    vocabulary = tiny_tokenizer().vocabulary
    online, offline = (
        Loader(data_config(data, codes=codes, row_images=8), CONFIG, tiny_tokenizer(), 0)
        for codes in ("online", "offline")
    )
    for _ in range(4):
        made, expected = next(online), next(offline)
        for row in range(len(made["tokens"])):
            codes = encode_images(tiny_model(), made["images"][row]).reshape(-1)
            there = made["code_index"][row] >= 0
            ids = vocabulary.code_ids[codes[made["code_index"][row][there]]]
            made["tokens"][row, there] = ids
            learnt = there & (made["labels"][row] >= 0)
            made["labels"][row, learnt] = made["tokens"][row, learnt]
        for name in expected:
            np.testing.assert_array_equal(made[name], expected[name], err_msg=name)
    online.close()
    offline.close()
