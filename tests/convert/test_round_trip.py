"""Model directory -> published layout -> model directory: nothing is lost, and nothing overwritten."""

import argparse
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.released_files import SIZE, same, sources
from unitoken_jax.checkpoint.model_directory import load_model
from unitoken_jax.checkpoint.param_store import ParamStore
from unitoken_jax.cli.main import main
from unitoken_jax.convert.from_torch import convert, inspect
from unitoken_jax.convert.to_torch import export
from unitoken_jax.convert.torch.readers import read_safetensors


def test_out_and_in_is_bit_exact(model, release, tmp_path):
    lines = convert(release, out=tmp_path / "back", **sources(release, verify=True))
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
from_torch.convert(release, siglip, vqgan, out, from_torch.ConvertOptions(image_size=int(sys.argv[5])))
"""


@pytest.mark.slow
def test_killed_and_called_again_it_goes_on(model, release, tmp_path, monkeypatch):
    given = sources(release)
    arguments = [release, given["siglip"], given["vqgan"], tmp_path / "m", SIZE]
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
    written = []
    write = ParamStore.write
    monkeypatch.setattr(
        ParamStore, "write", lambda self, *piece: (written.append(piece[:2]), write(self, *piece))
    )
    convert(release, out=tmp_path / "m", **sources(release, verify=True))
    same(load_model(model).params, load_model(tmp_path / "m").params)
    first = len(written)
    convert(release, out=tmp_path / "n", **given)
    assert 15 <= len(written) - 2 * first <= 20  # what the killed one had done
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m", "n"]
