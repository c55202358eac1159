"""Model directory -> published layout -> model directory, and conversions that must fail whole."""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import load_model, save_model
from unitoken_jax.checkpoint.param_store import ParamStore
from unitoken_jax.cli.main import main
from unitoken_jax.config import ModelConfig, SequenceConfig, published_sequence
from unitoken_jax.convert.from_torch import convert, inspect
from unitoken_jax.convert.to_torch import export
from unitoken_jax.convert.torch.readers import read_safetensors
from unitoken_jax.convert.torch.report import ConversionError
from unitoken_jax.convert.torch.writers import write_safetensors
from unitoken_jax.inspection.compare import compare
from unitoken_jax.unitoken import UniToken

SIZE = 32
PUBLISHED = dataclasses.replace(
    CONFIG,
    sequence=published_sequence(image_size=(SIZE, SIZE)),
    decoder=dataclasses.replace(CONFIG.decoder, qk_norm_shards=2, norm="output"),
    generation=ModelConfig().generation,
)


def published_params() -> dict:
    """bfloat16 but for the VQ-GAN, with two QK-norm rows."""
    params = jax.tree.map(lambda x: x, tiny_params())
    attention = params["decoder"]["layers"]["attention"]
    for name in ("q_norm", "k_norm"):
        attention[name] = {leaf: np.repeat(x, 2, 1) for leaf, x in attention[name].items()}
        attention[name]["scale"][:, 1] += 0.5
    return {
        name: tree if name == "vqgan" else jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), tree)
        for name, tree in params.items()
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "published"
    save_model(path, PUBLISHED, published_params(), tiny_tokenizer())
    return path


@pytest.fixture(scope="module")
def release(model):
    export(model, model.with_name("release"), vqgan=True, shard_bytes=20_000)
    return model.with_name("release")


def sources(release) -> dict:
    return {"siglip": release / "SigLIP", "vqgan": release / "chameleon" / "tokenizer", "image_size": SIZE}


def same(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def test_out_and_in_is_bit_exact(model, release, tmp_path):
    lines = convert(release, out=tmp_path / "back", verify=True, **sources(release))
    assert "parameters" in lines[0]
    before, after = load_model(model), load_model(tmp_path / "back")
    assert after.config == before.config
    same(before.params, after.params)
    assert after.tokenizer.encode("a red circle") == before.tokenizer.encode("a red circle")
    names = after.manifest["sources"]
    assert len(names["checkpoint/config.json"]["sha256"]) == 64
    assert "vqgan/vqgan.safetensors" in names
    assert len([name for name in names if "model-0" in name]) > 1
    assert any("siglip: " in line for line in inspect(tmp_path / "back"))


def test_norms_a_head_convert_to_the_same(model, release, tmp_path):
    export(model, tmp_path / "per_head", per_head=True)
    convert(tmp_path / "per_head", out=tmp_path / "back", **sources(release))
    same(load_model(model).params, load_model(tmp_path / "back").params)


@pytest.mark.parity
def test_sharded_torch_files(model, copy, tmp_path):
    """The same weights as pytorch_model-*.bin with an index, and the VQ-GAN as Lightning leaves it."""
    torch = pytest.importorskip("torch", reason="needs the parity extra")

    def torch_file(source, target, wrap=lambda tensors: tensors) -> list[str]:
        tensors = {name: tensor.read() for name, tensor in read_safetensors(source).items()}
        made = {
            name: torch.tensor(x.astype(np.float32)).to(getattr(torch, x.dtype.name))
            for name, x in tensors.items()
        }
        torch.save(wrap(made), target)
        source.unlink()
        return list(tensors)

    table = {}
    for k, path in enumerate(sorted(copy.glob("model-*.safetensors"))):
        table |= dict.fromkeys(torch_file(path, copy / f"pytorch_model-{k}.bin"), f"pytorch_model-{k}.bin")
    (copy / "model.safetensors.index.json").unlink()
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    folder = copy / "chameleon" / "tokenizer"
    extras = {"global_step": 7, "hparams": argparse.Namespace(lr=1e-3), "loops": {"a": [1, 2]}}
    torch_file(
        folder / "vqgan.safetensors", folder / "vqgan.ckpt", lambda made: {"state_dict": made, **extras}
    )
    convert(copy, out=tmp_path / "m", **sources(copy))
    same(load_model(model).params, load_model(tmp_path / "m").params)


def test_options(release, tmp_path):
    options = {"dtype": "float32", "resolution": "base", "stage_one_start": True}
    convert(release, out=tmp_path / "m", **sources(release), **options)
    found = load_model(tmp_path / "m")
    assert found.config.sequence.resolution == "base"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found.params)} == {"float32"}
    head = np.asarray(found.params["decoder"]["lm_head"]["kernel"])
    codes = tiny_tokenizer().vocabulary.code_ids
    assert not head[:, codes].any()
    assert np.abs(np.delete(head, codes, axis=1)).min() > 0


@pytest.fixture
def copy(release, tmp_path):
    return shutil.copytree(release, tmp_path / "copy")


def rewrite(folder, change) -> None:
    """All tensors of `folder` through `change`, into one file without index."""
    tensors = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        tensors |= {name: tensor.read().copy() for name, tensor in read_safetensors(path).items()}
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    write_safetensors(folder / "model.safetensors", change(tensors))


def test_a_decoder_alone_starts_stage_one(model, copy, tmp_path):
    def split(tensors):
        vision = {
            "vision_model." + name.removeprefix("vit."): value
            for name, value in tensors.items()
            if name.startswith("vit.")
        }
        vision["logit_scale"] = vision["text_model.head.bias"] = np.zeros(1, np.float32)
        write_safetensors(copy / "SigLIP" / "model.safetensors", vision)
        return {name: value for name, value in tensors.items() if name.startswith(("model.", "lm_head"))}

    rewrite(copy, split)
    with pytest.raises(ConversionError, match=r"is a decoder alone .*: give --siglip"):
        convert(copy, out=tmp_path / "m", image_size=SIZE)
    lines = convert(copy, out=tmp_path / "m", **sources(copy))
    assert any("stage-I starting point" in line for line in lines)
    assert any("left out: 2 tensors" in line for line in lines)
    found, before = load_model(tmp_path / "m"), load_model(model)
    assert found.config.sequence == SequenceConfig(image_size=(SIZE, SIZE))
    same(found.params["siglip"], before.params["siglip"])
    same(found.params["decoder"], before.params["decoder"])
    assert np.asarray(found.params["adapter"]["up"]["kernel"]).std() > 0


def test_the_vq_encoder_of_the_checkpoint(copy, tmp_path):
    codebook = read_safetensors(copy / "chameleon" / "tokenizer" / "vqgan.safetensors")

    def add(tensors):
        mine = {name: tensor for name, tensor in codebook.items() if not name.startswith("decoder.")}
        return tensors | {"model.vqmodel." + name: tensor.read().copy() for name, tensor in mine.items()}

    rewrite(copy, add)
    lines = convert(copy, copy / "SigLIP", out=tmp_path / "m", image_size=SIZE)
    assert any("cannot draw" in line for line in lines)
    found = UniToken.load(tmp_path / "m")
    assert "encoder" in found.params["vqgan"]
    with pytest.raises(ValueError, match="no vqgan/decoder parameters"):
        found.generate(["a red circle"])


def test_all_problems_in_one_report_and_nothing_left(copy, tmp_path):
    path = sorted(copy.glob("model-*.safetensors"))[0]
    tensors = {name: tensor.read().copy() for name, tensor in read_safetensors(path).items()}
    first = next(iter(tensors))
    tensors[first] = np.concatenate([tensors[first]] * 2)
    write_safetensors(path, {**tensors, "model.strange": np.zeros(3, np.float32)})
    sorted(copy.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(ConversionError) as caught:
        convert(copy, out=tmp_path / "m", **sources(copy))
    message = str(caught.value)
    for part in (
        f"shape: {first} in {path.name} is",
        "which is not there",
        "surplus: model.strange",
        "missing: ",
    ):
        assert part in message, message
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy"]


def test_a_save_that_fails_leaves_nothing(release, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(type(tiny_tokenizer()), "save", full)
    with pytest.raises(OSError, match="no space left"):
        convert(release, out=tmp_path / "m", **sources(release))
    assert not os.listdir(tmp_path)


def test_a_tower_of_unknown_settings_is_asked_for(release, tmp_path):
    with pytest.raises(ConversionError, match=r"are not SO400M/14-384's .*: give --siglip"):
        convert(release, out=tmp_path / "m", image_size=SIZE)


def test_a_missing_shard_is_named_before_what_follows_from_it(copy, tmp_path):
    """Without the files that hold the vision tower, this is no decoder alone, nor is SigLIP asked for."""
    table = json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"]
    lost = {file for name, file in table.items() if name.startswith(("vit.", "adapter."))}
    for file in lost:
        (copy / file).unlink()
    for given in ({}, sources(copy)):
        with pytest.raises(ConversionError, match=r"which is not there") as caught:
            convert(copy, out=tmp_path / "m", **given)
        assert all(file in str(caught.value) for file in lost)


@pytest.mark.parametrize(
    "changes", [{"resample": 2}, {"image_mean": [0.4, 0.5, 0.5]}, {"size": {"height": 9, "width": 9}}]
)
def test_pixels_prepared_otherwise_are_refused(copy, tmp_path, changes):
    (copy / "SigLIP" / "preprocessor_config.json").write_text(json.dumps(changes))
    with pytest.raises(ConversionError, match=rf"preprocessor_config\.json: '{next(iter(changes))}' is"):
        convert(copy, out=tmp_path / "m", **sources(copy))


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConversionError, match=r"someone/model is no folder; for a hub id, install"):
        convert("someone/model", out="m")

    def offline(_):
        raise RuntimeError("no network")

    hub = types.SimpleNamespace(snapshot_download=offline)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(ConversionError, match=r"someone/model .* no hub gave it \(no network\)"):
        convert("someone/model", out="m")
    hub.snapshot_download = lambda _: tmp_path
    with pytest.raises(ConversionError, match=r"config\.json does not exist"):
        convert("someone/model", out="m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "wide"}, "'hidden_size' is 'wide'; expected int"),
        ({"hidden_size": None}, "hidden_size"),
        ({"rope_scaling": {"factor": 2}}, "only None is known"),
        ({"num_key_value_heads": 3}, "do not divide evenly"),
        ({"architectures": "AnyRes"}, "expected a list of names"),
        ({"architectures": []}, "give --resolution"),
        ({"mask_image_logits": True}, "only False is known"),
        ({"num_hidden_layers": 10**12}, "is 1000000000000; expected 1 to 1000"),
        ({"rope_theta": float("nan")}, "expected a positive number"),
        ({"dropout": 1.0}, "expected 0 to less than 1"),
    ],
)
def test_wrong_settings_are_named(copy, tmp_path, changes, message):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConversionError, match=rf"config\.json.*{message}"):
        convert(copy, out=tmp_path / "m", **sources(copy))


def test_nothing_is_overwritten(model, release, tmp_path):
    (tmp_path / "dear.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is no model directory"):
        convert(release, out=tmp_path, **sources(release))
    with pytest.raises(FileExistsError, match="is not empty"):
        export(model, tmp_path)
    assert os.listdir(tmp_path) == ["dear.txt"]


def test_command_line(model, tmp_path, capsys):
    assert main(["export", "--model", str(model), "--out", str(tmp_path / "r"), "--vqgan"]) == 0
    arguments = ["convert", "--checkpoint", str(tmp_path / "r"), "--out", str(tmp_path / "m")]
    assert main([*arguments, "--image-size", str(SIZE)]) == 2
    assert "give --siglip" in capsys.readouterr().err
    arguments += ["--siglip", str(tmp_path / "r" / "SigLIP"), "--image-size", str(SIZE), "--verify"]
    assert main(arguments) == 0
    assert "cannot draw" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "m")]) == 0
    assert "decoder/lm_head/kernel" in capsys.readouterr().out


@pytest.mark.parity
def test_transformers_loads_the_decoder(model, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    peers = pytest.importorskip("transformers.models.chameleon", reason="needs the parity extra")
    export(model, tmp_path / "r", per_head=True)
    config = peers.ChameleonConfig.from_pretrained(tmp_path / "r", attn_implementation="eager")
    config.vocabulary_map["<image>"] = 0
    config.vq_config.base_channels = 32  # it builds a VQ encoder, always with 32 groups
    peer, info = peers.ChameleonForConditionalGeneration.from_pretrained(
        tmp_path / "r", config=config, dtype=torch.float32, output_loading_info=True
    )
    missing = [name for name in info["missing_keys"] if not name.startswith("model.vqmodel.")]
    assert (missing, info["mismatched_keys"]) == ([], [])
    ids = tiny_tokenizer().encode("what is this ? a red circle left of the blue square")
    with torch.no_grad():
        hidden = peer.model(input_ids=torch.tensor([ids]))[0]
        expected = torch.nn.functional.linear(hidden, peer.lm_head.weight)
    here = UniToken.load(model, dtype="float32")
    n = len(ids)
    row = {
        "tokens": np.array([ids], np.int32),
        "segments": np.ones((1, n), np.int32),
        "positions": np.arange(n, dtype=np.int32)[None],
        "image_feature_index": np.full((1, n), -1, np.int32),
    }
    np.testing.assert_allclose(here.apply(here.params, row), expected.numpy(), atol=1e-4)


@pytest.mark.parity
def test_inspect_against_what_pytorch_computes(model, release, tmp_path, capsys):
    pytest.importorskip("torch", reason="needs the parity extra")
    pytest.importorskip("transformers", reason="needs the parity extra")
    script = pathlib.Path(__file__).parents[2] / "launch" / "record_torch.py"
    given = ["--checkpoint", release, "--siglip", release / "SigLIP", "--out", tmp_path / "record.npz"]
    subprocess.run([sys.executable, script, *given], check=True)
    assert main(["inspect", str(model), "--against", str(tmp_path / "record.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + CONFIG.decoder.depth + 4 + CONFIG.siglip.depth + 1
    assert max(float(number) for line in lines[1:] for number in line.split()[-2:]) < 1e-4

    # A difference shows in its layer alone, and in all that follow in sequence.
    with np.load(tmp_path / "record.npz") as file:
        record = dict(file)
    params = jax.tree.map(np.array, load_model(model).params)
    params["decoder"]["layers"]["mlp_norm"]["scale"][0] *= 2
    save_model(tmp_path / "changed", PUBLISHED, params, tiny_tokenizer())
    lines = compare(tmp_path / "changed", tmp_path / "record.npz")
    table = {line.split("  ")[0]: line.split()[-2:] for line in lines}
    assert float(table["decoder: layer 0"][0]) > 1e-2 > 1e-4 > float(table["decoder: layer 1"][0])
    assert float(table["decoder: layer 1"][1]) > 1e-2

    np.savez(tmp_path / "other.npz", **record | {"decoder/states": record["decoder/states"][1:]})
    with pytest.raises(ValueError, match="another model's record"):
        compare(model, tmp_path / "other.npz")
    np.savez(tmp_path / "empty.npz", x=np.zeros(1))
    with pytest.raises(ValueError, match="holds no record"):
        compare(model, tmp_path / "empty.npz")


KILLED = """
import os, signal, sys
from unitoken_jax.checkpoint import param_store
from unitoken_jax.convert import from_torch

write, left = param_store.ParamStore.write, 20


def write_twenty(self, *piece):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *piece)


param_store.ParamStore.write = write_twenty
release, siglip, vqgan, out = sys.argv[1:5]
from_torch.convert(release, siglip, vqgan, out, image_size=int(sys.argv[5]))
"""


@pytest.mark.slow
def test_killed_and_called_again_it_goes_on(model, release, tmp_path, monkeypatch):
    given = sources(release)
    arguments = [release, given["siglip"], given["vqgan"], tmp_path / "m", given["image_size"]]
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
    written = []
    write = ParamStore.write
    monkeypatch.setattr(
        ParamStore, "write", lambda self, *piece: (written.append(piece[:2]), write(self, *piece))
    )
    convert(release, out=tmp_path / "m", verify=True, **given)
    same(load_model(model).params, load_model(tmp_path / "m").params)
    first = len(written)
    convert(release, out=tmp_path / "n", **given)
    assert 15 <= len(written) - 2 * first <= 20  # what the killed one had done
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m", "n"]
