"""A model directory in 8 or 4 bits: the same as quantizing while loading, for everything that reads it."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.networks import random_params
from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax import UniToken
from unitoken_jax.checkpoint import param_store
from unitoken_jax.checkpoint.model_directory import load_model, open_model, save_model
from unitoken_jax.checkpoint.quantization import quantize_model
from unitoken_jax.cli.main import main
from unitoken_jax.config import Config, DecoderConfig, TrainConfig
from unitoken_jax.convert.from_torch import inspect
from unitoken_jax.convert.to_torch import export
from unitoken_jax.evaluate.recipe import weights_id
from unitoken_jax.model.init import abstract_params
from unitoken_jax.model.quantize import pack_int4, unpack_int4
from unitoken_jax.train.loop import train


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder with the tiny model as M and in 8 bits as M8, and a decoder wide enough for 4 as N and N4."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "M", CONFIG, tiny_params(), tiny_tokenizer(), {"licences": ["none"]})
    quantize_model(folder / "M", folder / "M8", 8)
    decoder = DecoderConfig(vocab_size=400, width=128, depth=2, heads=4, kv_heads=2, mlp=256)
    wide = dataclasses.replace(CONFIG, decoder=decoder)
    bfloat16 = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(abstract_params(wide)))
    save_model(folder / "N", wide, bfloat16, tiny_tokenizer())
    quantize_model(folder / "N", folder / "N4", 4)
    return folder


@pytest.mark.parametrize(("name", "bits"), [("M", 8), ("N", 4)])
def test_it_loads_as_quantizing_the_original_does(models, name, bits):
    stored = UniToken.load(models / f"{name}{bits}")
    expected = UniToken.load(models / name, quantize=f"int{bits}")
    assert jax.tree.structure(stored.params) == jax.tree.structure(expected.params)
    for found, wanted in zip(jax.tree.leaves(stored.params), jax.tree.leaves(expected.params)):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    assert stored.module == expected.module
    assert stored.module.cache_dtype == jnp.int8


def test_its_logits_are_those_of_quantizing_the_original(models):
    zeros = jnp.zeros((1, 4), jnp.int32)
    batch = {"tokens": zeros + 7, "segments": zeros + 1, "positions": jnp.arange(4)[None]}
    batch |= {"image_feature_index": zeros - 1, "crops": jnp.zeros((1, 0, 16, 16, 3), jnp.uint8)}
    stored, expected = UniToken.load(models / "M8"), UniToken.load(models / "M", quantize="int8")
    apply = jax.jit(stored.apply)
    logits = [apply(model.params, batch) for model in (stored, expected)]
    np.testing.assert_array_equal(*logits)
    assert np.ptp(logits[0]) > 1


def test_what_is_not_read_whole_stays_as_small_as_it_is_stored(models):
    params = UniToken.load(models / "N4", dtype="float32").params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params["siglip"])} == {"bfloat16"}
    assert params["decoder"]["embed"]["embedding"].dtype == jnp.bfloat16
    assert params["decoder"]["lm_head"]["kernel"].dtype == jnp.float32


def test_a_layer_is_a_file_and_four_bits_take_half_of_eight(models, tmp_path, monkeypatch):
    monkeypatch.setattr(param_store, "SMALL_BYTES", 1024)
    quantize_model(models / "N", tmp_path / "N8", 8)
    quantize_model(models / "N", tmp_path / "N4", 4)
    for name, size in (("N8", 128 * 256), ("N4", 64 * 256)):
        files = [
            tmp_path / name / "params/decoder.layers.mlp.up.kernel.values" / f"{i}.0.0" for i in range(2)
        ]
        assert [file.stat().st_size for file in files] == [size, size]


def test_its_manifest_says_what_it_is_and_where_it_came_from(models):
    manifest = json.loads((models / "M8" / "manifest.json").read_text())
    assert (manifest["format"], manifest["quantization"], manifest["quantized_from"]) == (3, "int8", "M")
    assert manifest["licences"] == ["none"]


def test_what_reads_parameters_sees_whole_kernels(models):
    stored = open_model(models / "N4").params
    kernel = stored.read("decoder/layers/mlp/up/kernel", 1)
    expected = load_model(models / "N", quantize="int4").params["decoder"]["layers"]["1"]["mlp"]["up"][
        "kernel"
    ]
    np.testing.assert_array_equal(kernel.values, expected.values)
    lines = inspect(models / "N4")
    assert any(line.split()[0] == "decoder/layers/mlp/up/kernel" and line.endswith("int4") for line in lines)
    assert lines[-4:] == inspect(models / "N")[-4:]  # as many parameters
    assert weights_id(models / "M8")["params"] != weights_id(models / "M")["params"]


def test_other_bits_than_its_own_are_refused(models):
    with pytest.raises(ValueError, match="M8 holds its decoder in int8, not in int4: quantize the model"):
        UniToken.load(models / "M8", quantize="int4")


def test_what_needs_the_original_names_it(models, tmp_path):
    message = "M8 holds its decoder in int8, from which nothing leads back: for {}, name .* made of \\(M\\)"
    with pytest.raises(ValueError, match=message.format("exporting")):
        export(models / "M8", tmp_path / "out")
    with pytest.raises(ValueError, match=message.format("quantizing")):
        quantize_model(models / "M8", tmp_path / "out", 8)
    with pytest.raises(ValueError, match=message.format(r"training \(config.train.init_from\)")):
        train(Config(CONFIG, train=TrainConfig(init_from=str(models / "M8"))), tmp_path / "run")
    with pytest.raises(ValueError, match="quantized: `unitoken quantize` writes such a directory"):
        save_model(tmp_path / "out", CONFIG, UniToken.load(models / "M8").params, tiny_tokenizer())
    assert not list(tmp_path.iterdir())


def test_a_destination_that_cannot_be_is_refused(models, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.png").write_text("dear")
    with pytest.raises(FileExistsError, match="photos exists and is no model directory"):
        quantize_model(models / "M", tmp_path / "photos", 8)
    (tmp_path / "link").symlink_to(models / "M")
    with pytest.raises(ValueError, match="link is the model itself"):
        quantize_model(models / "M", tmp_path / "link", 8)
    with pytest.raises(ValueError, match="int4 needs inputs in groups of 128, but a kernel has 32: use int8"):
        quantize_model(models / "M", tmp_path / "out", 4)
    assert load_model(models / "M").config == CONFIG


def test_packed_bits_are_those_of_int4():
    values = np.arange(-8, 8, dtype=np.int8).reshape(8, 2).astype(jnp.int4)
    assert pack_int4(values).shape == (4, 2)
    np.testing.assert_array_equal(unpack_int4(pack_int4(values)), values)


def test_the_command_writes_what_the_function_does(models, tmp_path, capsys):
    assert main(["quantize", "--model", str(models / "M"), "--out", str(tmp_path / "Q")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/Q: the decoder in int8, 0.00 GB\n"
    assert weights_id(tmp_path / "Q")["params"] == weights_id(models / "M8")["params"]
    assert main(["quantize", "--model", str(models / "M8"), "--out", str(tmp_path / "R")]) == 2
    assert "M8 holds its decoder in int8" in capsys.readouterr().err


def test_an_interrupted_call_goes_on(models, tmp_path, monkeypatch):
    written, write = [], param_store.ParamStore.write

    def stop_at_ten(self, *piece):
        if len(written) == 10:
            raise KeyboardInterrupt
        written.append(piece[:2])
        write(self, *piece)

    monkeypatch.setattr(param_store.ParamStore, "write", stop_at_ten)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(models / "M", tmp_path / "Q", 8)
    monkeypatch.undo()
    first = set(written)
    monkeypatch.setattr(
        param_store.ParamStore, "write", lambda self, *piece: (written.append(piece[:2]), write(self, *piece))
    )
    quantize_model(models / "M", tmp_path / "Q", 8)
    assert len(first & set(written[10:])) <= 2  # a kernel whose scales were missing is written again
    assert weights_id(tmp_path / "Q")["params"] == weights_id(models / "M8")["params"]


_ON_A_MESH = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from unitoken_jax.checkpoint.model_directory import load_model
from unitoken_jax.config import MeshConfig
from unitoken_jax.model.sharding import make_mesh

mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
spread, whole = load_model(sys.argv[1], mesh=mesh).params, load_model(sys.argv[1]).params
jax.tree.map(np.testing.assert_array_equal, spread, whole)
up = spread["decoder"]["layers"]["1"]["mlp"]["up"]["kernel"]
assert up.values.addressable_shards[0].data.shape == (64, 128)
assert up.scales.addressable_shards[0].data.shape == (1, 128)
"""


@pytest.mark.slow
def test_it_spreads_over_a_mesh(models):
    """Slow, since jax starts anew with four devices."""
    command = [sys.executable, "-c", _ON_A_MESH, str(models / "N4")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
