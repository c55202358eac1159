"""What a conversion makes of decoders alone, of VQ encoders in a checkpoint, and of options."""

import sys
import types

import jax
import numpy as np
import pytest

from tests.helpers.released_files import OPTIONS, SIZE, rewrite, same, sources
from tests.helpers.tiny_model import tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import load_model
from unitoken_jax.config import SequenceConfig
from unitoken_jax.convert.from_torch import convert
from unitoken_jax.convert.torch.readers import read_safetensors
from unitoken_jax.convert.torch.report import ConversionError
from unitoken_jax.convert.torch.writers import write_safetensors
from unitoken_jax.unitoken import UniToken


def test_options(release, tmp_path):
    options = {"dtype": "float32", "resolution": "base", "stage_one_start": True}
    convert(release, out=tmp_path / "m", **sources(release, **options))
    found = load_model(tmp_path / "m")
    assert found.config.sequence.resolution == "base"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found.params)} == {"float32"}
    head = np.asarray(found.params["decoder"]["lm_head"]["kernel"])
    codes = tiny_tokenizer().vocabulary.code_ids
    assert not head[:, codes].any()
    assert np.abs(np.delete(head, codes, axis=1)).min() > 0


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
        convert(copy, out=tmp_path / "m", options=OPTIONS)
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
    lines = convert(copy, copy / "SigLIP", out=tmp_path / "m", options=OPTIONS)
    assert any("cannot draw" in line for line in lines)
    found = UniToken.load(tmp_path / "m")
    assert "encoder" in found.params["vqgan"]
    with pytest.raises(ValueError, match="no vqgan/decoder parameters"):
        found.generate(["a red circle"])


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
