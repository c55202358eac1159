"""A merged model directory: what the adapter computes beside its base, in an ordinary model."""

import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.checkpoint.test_adapter import LORA, features, trained
from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax import UniToken
from unitoken_jax.checkpoint import param_store
from unitoken_jax.checkpoint.adapter import Base, fingerprint, save_adapter
from unitoken_jax.checkpoint.merge import merge_adapter
from unitoken_jax.checkpoint.model_directory import open_model, save_model
from unitoken_jax.checkpoint.quantization import quantize_model
from unitoken_jax.cli.main import main
from unitoken_jax.config import DecoderConfig, LoraConfig
from unitoken_jax.convert.from_torch import inspect
from unitoken_jax.evaluate.recipe import weights_id
from unitoken_jax.model.init import abstract_params, init_lora

MANIFEST = {"licences": ["none"], "scores": {"red": 1.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny model as M, an adapter of it as tuned, and both as merged."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "M", CONFIG, tiny_params(), tiny_tokenizer(), MANIFEST)
    save_adapter(folder / "tuned", trained(), LORA, Base.of(folder / "M"), {"step": 3, "scores": {"a": 2}})
    merge_adapter(folder / "tuned", folder / "merged")
    return folder


def flat(params) -> dict:
    return {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}


def test_merged_is_what_the_adapter_computes(folder, tmp_path):
    """With pairs that change logits by as much as they are: float32's places are those of the largest sum."""
    pairs = {path: value * (1 if path.endswith("kernel") else 0.3) for path, value in trained().items()}
    save_adapter(tmp_path / "tuned", pairs, LORA, Base.of(folder / "M"))
    lines = merge_adapter(tmp_path / "tuned", tmp_path / "merged")
    assert lines == [f"{tmp_path}/merged: M with {tmp_path}/tuned merged into it, 0.00 GB"]
    merged, adapted = UniToken.load(tmp_path / "merged"), UniToken.load(adapter=tmp_path / "tuned")
    head = np.asarray(merged.params["decoder"]["lm_head"]["kernel"])
    plain, *logits = (features(model) @ head for model in (adapted.with_adapter(None), merged, adapted))
    np.testing.assert_allclose(*logits, atol=1e-5, rtol=0)
    assert np.abs(logits[0] - plain).max() > 1


@pytest.mark.parametrize(("dtype", "rslora"), [("float32", True), ("bfloat16", False), ("float16", True)])
def test_a_sum_is_rounded_once_to_what_the_base_is_stored_in(tmp_path, dtype, rslora):
    """Within half a unit in the last place of the exact sum, and of a whole-trained parameter exactly."""
    lora = dataclasses.replace(LORA, rslora=rslora)
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tiny_params())
    save_model(tmp_path / "M", CONFIG, stored, tiny_tokenizer())
    save_adapter(tmp_path / "tuned", pairs := trained(), lora, Base.of(tmp_path / "M"))
    merge_adapter(tmp_path / "tuned", tmp_path / "merged")
    base, merged = flat(stored), open_model(tmp_path / "merged").params
    assert base.keys() == merged.shapes.keys()
    changed = set()
    for path in base:
        value = merged.read(path)
        assert value.dtype == dtype
        module = path.removesuffix("kernel")
        if module + "lora_a" in pairs:
            a, b = (
                pairs[module + name].astype(np.float32).astype(np.float64) for name in ("lora_a", "lora_b")
            )
            exact = base[path].astype(np.float64) + lora.scale * a @ b
            places = jnp.finfo(dtype).nmant
            unit = 2.0 ** (np.floor(np.log2(np.abs(exact))) - places)
            wrong = np.abs(value.astype(np.float64) - exact)
            assert (wrong <= unit * (0.5 if dtype != "float32" else 4) + 1e-6).all(), path
            changed.add(path)
        elif path in pairs:
            np.testing.assert_array_equal(value, np.asarray(jnp.asarray(pairs[path], dtype)))
        else:
            np.testing.assert_array_equal(value, base[path])
    assert len(changed) == 13


def test_its_manifest_says_what_it_is_made_of(folder):
    manifest = json.loads((folder / "merged" / "manifest.json").read_text())
    assert manifest["licences"] == ["none"]
    assert "scores" not in manifest
    made = manifest["merged_from"]
    assert (made["base"], made["adapter"], made["step"], made["scores"]) == ("M", "tuned", 3, {"a": 2})
    assert (made["lora"]["rank"], made["lora"]["alpha"]) == (2, 6.0)
    assert made["base_fingerprint"] == fingerprint(folder / "M") != fingerprint(folder / "merged")
    assert any(line.startswith("merged_from: {'base': 'M'") for line in inspect(folder / "merged"))


def test_what_cannot_be_merged_is_refused_before_anything_is_written(folder, tmp_path):
    tuned = folder / "tuned"
    quantize_model(folder / "M", tmp_path / "M8", 8)
    other = jax.tree.map(lambda leaf: leaf * 1.5, tiny_params())
    save_model(tmp_path / "other", CONFIG, other, tiny_tokenizer())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.png").write_text("dear")
    (tmp_path / "link").symlink_to(folder / "M")
    before = sorted(tmp_path.rglob("*"))
    for out, model, error, message in (
        ("out", tmp_path / "M8", ValueError, r"in int8, .* for merging, name the model .* \(M\)"),
        ("out", tmp_path / "other", ValueError, "was trained on .*M .*other .*is another model"),
        ("photos", None, FileExistsError, "photos exists and is no model directory"),
        ("link", None, ValueError, "link is the model itself"),
        (tuned, None, FileExistsError, "tuned exists and is no model directory"),
    ):
        with pytest.raises(error, match=message):
            merge_adapter(tuned, tmp_path / out, model)
    with pytest.raises(FileNotFoundError, match="no adapter at"):
        merge_adapter(tmp_path / "none", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_beyond_float16_nothing_is_left(tmp_path):
    stored = jax.tree.map(lambda leaf: leaf.astype(np.float16), tiny_params())
    save_model(tmp_path / "M", CONFIG, stored, tiny_tokenizer())
    large = {path: value * 1e4 for path, value in trained().items()}
    save_adapter(tmp_path / "tuned", large, LORA, Base.of(tmp_path / "M"))
    with pytest.raises(ValueError, match="is stored in float16, and merged it is beyond it"):
        merge_adapter(tmp_path / "tuned", tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["M", "tuned"]


def test_an_interrupted_merge_goes_on(folder, tmp_path, monkeypatch):
    written, write = [], param_store.ParamStore.write

    def stop_at_ten(self, *piece):
        if len(written) == 10:
            raise KeyboardInterrupt
        written.append(piece[:2])
        write(self, *piece)

    monkeypatch.setattr(param_store.ParamStore, "write", stop_at_ten)
    with pytest.raises(KeyboardInterrupt):
        merge_adapter(folder / "tuned", tmp_path / "merged")
    monkeypatch.setattr(
        param_store.ParamStore, "write", lambda self, *piece: (written.append(piece[:2]), write(self, *piece))
    )
    merge_adapter(folder / "tuned", tmp_path / "merged")
    assert len(set(written)) == len(written) > 20  # nothing twice
    assert weights_id(tmp_path / "merged")["params"] == weights_id(folder / "merged")["params"]


def test_memory_is_little_more_than_the_largest_tensor(tmp_path, monkeypatch):
    """Counted in what numpy allocates: all that is read of a tensor in several files, as conversion and
    merging write large ones."""
    monkeypatch.setattr(param_store, "CHUNK_BYTES", 2**21)
    decoder = DecoderConfig(vocab_size=400, width=512, depth=1, heads=4, kv_heads=2, mlp=4096)
    config = dataclasses.replace(CONFIG, decoder=decoder)
    small = flat(tiny_params())
    boxes = traverse_util.flatten_dict(abstract_params(config), sep="/")
    params = {
        path: small[path] if small[path].shape == box.value.shape else np.ones(box.value.shape, np.float32)
        for path, box in boxes.items()
    }
    save_model(tmp_path / "M", config, traverse_util.unflatten_dict(params, sep="/"), tiny_tokenizer())
    lora = LoraConfig(rank=1, targets="mlp/up/kernel$")
    pairs = {
        path: np.ones(leaf.shape, np.float32)
        for path, leaf in flat(init_lora(config, lora)).items()
        if path.endswith(("lora_a", "lora_b"))
    }
    largest = 512 * 4096 * 4
    save_adapter(tmp_path / "tuned", pairs, lora, Base.of(tmp_path / "M"))
    merge_adapter(tmp_path / "tuned", tmp_path / "first")
    save_adapter(tmp_path / "tuned", pairs, lora, Base.of(tmp_path / "first"))
    tracemalloc.start()
    merge_adapter(tmp_path / "tuned", tmp_path / "second")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest < peak <= 1.5 * largest
    up = open_model(tmp_path / "second").params.read("decoder/layers/mlp/up/kernel")
    np.testing.assert_array_equal(up, np.full(up.shape, 1 + 2 * lora.scale))


def test_the_command_writes_what_the_function_does(folder, tmp_path, capsys):
    argv = ["merge", "--adapter", str(folder / "tuned"), "--out", str(tmp_path / "merged")]
    assert main([*argv, "--model", str(folder / "M")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/merged: M with ")
    assert weights_id(tmp_path / "merged")["params"] == weights_id(folder / "merged")["params"]
    assert main(["merge", "--adapter", str(folder / "M"), "--out", str(tmp_path / "x")]) == 2
    assert "no adapter at" in capsys.readouterr().err
