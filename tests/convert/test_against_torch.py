"""Exported weights in `transformers`, and `inspect --against` what PyTorch computes."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.helpers.released_files import PUBLISHED
from tests.helpers.tiny_model import CONFIG, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import load_model, save_model
from unitoken_jax.cli.main import main
from unitoken_jax.convert.to_torch import export
from unitoken_jax.inspection.compare import compare
from unitoken_jax.unitoken import UniToken


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


@pytest.mark.slow
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
