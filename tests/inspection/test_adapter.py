"""What `unitoken inspect` says of an adapter folder."""

import shutil

import pytest

from tests.checkpoint.test_adapter import LORA, trained
from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.adapter import Base, fingerprint, save_adapter
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.cli.main import main


@pytest.mark.parametrize("moved", [False, True])
def test_it_is_told_what_it_is(tmp_path, capsys, moved):
    model, tuned = tmp_path / "M", tmp_path / "tuned"
    save_model(model, CONFIG, tiny_params(), tiny_tokenizer())
    save_adapter(tuned, trained(), LORA, Base.of(model), {"step": 3, "scores": {"validation_loss": 0.5}})
    digits = fingerprint(model)[:12]
    if moved:
        shutil.move(model, tmp_path / "elsewhere")
    assert main(["inspect", str(tuned)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tuned}: an adapter, made 20")
    gone = "; no model directory is there now: name a copy with --model" if moved else ""
    assert lines[1:7] == [
        f"base: {model} (fingerprint {digits}){gone}",
        "lora: rank 2, alpha 6, scale 3",
        "targets: ^(decoder/layers|siglip/layers)/",
        "trained whole: adapter/up/kernel",
        "step: 3",
        "scores: {'validation_loss': 0.5}",
    ]
    assert f"{'decoder/layers/mlp/up/lora_b':<60} (2, 2, 48)" in lines
    assert lines[-1].endswith(f" parameters in pairs, {16 * 32} trained whole")
