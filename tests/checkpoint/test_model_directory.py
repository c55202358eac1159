"""The model directory: round trip, what is refused, and that it is never half-written."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from tests.helpers.tiny_model import CONFIG, noise, tiny_model, tiny_params, tiny_tokenizer
from unitoken_jax import UniToken
from unitoken_jax.checkpoint import model_directory
from unitoken_jax.checkpoint.model_directory import (
    is_model_dir,
    load_model,
    load_settings,
    open_model,
    save_model,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model(path, CONFIG, tiny_params(), tiny_tokenizer(), {"licences": ["none: random numbers"]})
    return path


@pytest.mark.parametrize("name", ["run[1]", "../{here}/a/../b", "~/c", "link/../d", "a\\b*"])
def test_any_path_that_a_person_types(name, tmp_path, monkeypatch):
    """Read whole, by parameter, and in bits: each hands the path to another library."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    path = name.format(here=tmp_path.name)
    save_model(path, CONFIG, tiny_params(), tiny_tokenizer())
    jax.tree.map(np.testing.assert_array_equal, load_model(path).params, tiny_params())
    scale = open_model(path).params.read("decoder/norm/scale")
    np.testing.assert_array_equal(scale, tiny_params()["decoder"]["norm"]["scale"])
    assert load_model(path, quantize="int8").params["decoder"]
    assert not (tmp_path / "~").exists()


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def _without(params, *path):
    tree = dict(params)
    if len(path) == 1:
        del tree[path[0]]
    else:
        tree[path[0]] = _without(tree[path[0]], *path[1:])
    return tree


def test_round_trip(saved):
    config, params, tokenizer, manifest = load_model(saved)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, tiny_params())
    assert tokenizer.encode("a red circle") == tiny_tokenizer().encode("a red circle")
    assert manifest["licences"] == ["none: random numbers"]
    assert manifest["versions"]["jax"] == jax.__version__
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json",
        "manifest.json",
        "params",
        "tokenizer.json",
    ]
    assert [path.name for path in saved.parent.iterdir()] == ["tiny"]


def test_no_file_names_the_folder_it_was_written_to(saved):
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if str(saved.parent).encode() in path.read_bytes()]


def test_a_layer_can_be_read_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(model_directory, "SMALL_BYTES", 4096)
    save_model(tmp_path / "m", CONFIG, tiny_params(), tiny_tokenizer())
    store = {
        "driver": "ocdbt",
        "base": f"file://{tmp_path}/m/params/",
        "path": "decoder.layers.mlp.up.kernel/",
    }
    stored = tensorstore.open({"driver": "zarr", "kvstore": store}, open=True).result()
    assert stored.chunk_layout.read_chunk.shape == (1, 32, 48)
    up = tiny_params()["decoder"]["layers"]["mlp"]["up"]["kernel"]
    params = open_model(tmp_path / "m").params
    np.testing.assert_array_equal(params.read("decoder/layers/mlp/up/kernel", 1), up[1])
    np.testing.assert_array_equal(params.read_below("decoder/layers", 1)["mlp"]["up"]["kernel"], up[1])


@pytest.mark.slow
def test_loaded_model_does_what_the_saved_one_does(saved):
    model = UniToken.load(saved)
    asked = [[noise(0), "what is this ?"]]
    assert model.answer(asked) == tiny_model().answer(asked)
    (drawn,), (expected,) = (
        model.image_results(["a red circle"]),
        tiny_model().image_results(["a red circle"]),
    )
    np.testing.assert_array_equal(drawn.tokens, expected.tokens)
    assert model.generate(["a red circle"])[0].tobytes() == expected.image.tobytes()


@pytest.mark.slow
def test_dtype_casts_all_but_the_vqgan(saved):
    params = load_model(saved, dtype="bfloat16").params
    assert {leaf.dtype for leaf in jax.tree.leaves(params["decoder"])} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(params["vqgan"])} == {jnp.dtype("float32")}
    model = UniToken.load(saved, dtype="bfloat16")
    assert len(model.answer([[noise(0), "what is this ?"]])) == len(model.generate(["a"])) == 1


def test_what_a_loaded_model_holds_is_saved_as_it_was_stored(saved, tmp_path):
    save_model(tmp_path / "again", CONFIG, UniToken.load(saved).params, tiny_tokenizer())
    jax.tree.map(
        np.testing.assert_array_equal, load_model(tmp_path / "again").params, load_model(saved).params
    )


def test_apply_is_pure_in_params():
    model = tiny_model()
    zeros = jnp.zeros((1, 4), jnp.int32)
    batch = {"tokens": zeros, "segments": zeros + 1, "positions": jnp.arange(4)[None]}
    batch |= {"image_feature_index": zeros - 1, "crops": jnp.zeros((1, 0, 16, 16, 3), jnp.uint8)}
    logits = model.apply(model.params, batch)
    assert logits.shape == (1, 4, CONFIG.decoder.vocab_size)
    assert not np.allclose(logits, model.apply(jax.tree.map(lambda x: x * 2, model.params), batch))


def test_replaces_a_model_directory_but_nothing_else(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    save_model(path, CONFIG, tiny_params(), tiny_tokenizer(), {"licences": ["first"]})
    save_model(path, CONFIG, tiny_params(), tiny_tokenizer(), {"licences": ["second"]})
    assert load_model(path).manifest["licences"] == ["second"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "dear.png").write_text("dear")
    with pytest.raises(FileExistsError, match="photos exists and is no model directory"):
        save_model(other, CONFIG, tiny_params(), tiny_tokenizer())
    assert (other / "dear.png").read_text() == "dear"


def test_a_save_that_fails_leaves_the_old_model_alone(copy, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(type(tiny_tokenizer()), "save", full)
    with pytest.raises(OSError, match="no space left"):
        save_model(copy, CONFIG, tiny_params(), tiny_tokenizer())
    monkeypatch.undo()
    assert load_model(copy).config == CONFIG
    save_model(copy, CONFIG, tiny_params(), tiny_tokenizer())
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_every_wrong_parameter_is_listed(tmp_path):
    params = _without(tiny_params(), "decoder", "lm_head")
    params["adapter"] = {**params["adapter"], "extra": jnp.zeros(3)}
    params["siglip"] = {**params["siglip"], "position_embed": {"embedding": jnp.zeros((9, 16))}}
    with pytest.raises(ValueError) as caught:
        save_model(tmp_path / "model", CONFIG, params, tiny_tokenizer())
    message = str(caught.value)
    assert "3 problems" in message
    assert "missing: decoder/lm_head/kernel (32, 400)" in message
    assert "surplus: adapter/extra (3,)" in message
    assert "shape: siglip/position_embed/embedding is (9, 16), the config says (4, 16)" in message
    assert not (tmp_path / "model").exists()


def test_stored_parameters_are_checked_against_the_config(copy):
    config = json.loads((copy / "config.json").read_text())
    config["decoder"]["mlp"] = 40
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"3 problems:[\s\S]*the config says \(2, 32, 40\)"):
        load_model(copy)


@pytest.mark.parametrize(
    ("lack", "reads", "draws"),
    [(("vqgan",), False, False), (("vqgan", "decoder"), True, False), (("vqgan", "encoder"), False, True)],
)
def test_without_a_part_of_the_vqgan(tmp_path, lack, reads, draws):
    save_model(tmp_path / "model", CONFIG, _without(tiny_params(), *lack), tiny_tokenizer())
    model = UniToken.load(tmp_path / "model")
    assert model.answer([["what is this ?"]]) == tiny_model().answer([["what is this ?"]])
    for works, group, call in (
        (reads, "vqgan/encoder", lambda: model.answer([[noise(0), "what is this ?"]])),
        (draws, "vqgan/decoder", lambda: model.generate(["a"])),
    ):
        if works:
            assert len(call()) == 1
        else:
            with pytest.raises(ValueError, match=f"no {group} parameters"):
                call()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "manifest.json"])
def test_incomplete_directories_are_refused(copy, name):
    assert is_model_dir(copy)
    (copy / name).unlink()
    assert not is_model_dir(copy)
    with pytest.raises(FileNotFoundError, match=f"is no model directory: it lacks {name}"):
        load_model(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"decodre": {}}', r"config\.json: unknown config key decodre.*Did you mean decoder"),
        ('{"decoder": {"width": "wide"}}', r"decoder\.width is 'wide'; expected int"),
    ],
)
def test_bad_config_files_are_named(copy, text, message):
    (copy / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_model(copy)


@pytest.mark.parametrize("unstacked", [False, True])
def test_a_missing_file_of_parameters_is_named(copy, unstacked):
    files = [path for path in (copy / "params").rglob("d/*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).unlink()
    with pytest.raises(
        ValueError, match=r"copy/params cannot be read \(.*\): the model directory is damaged"
    ):
        load_model(copy, unstacked=unstacked)


def test_a_newer_format_is_refused(copy):
    (copy / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        load_model(copy)


@pytest.mark.parametrize("read", [load_settings, open_model, load_model])
def test_an_older_format_is_refused_with_what_to_do(copy, read):
    config = json.loads((copy / "config.json").read_text())
    config["sequence"]["picture_size"] = config["sequence"].pop("image_size")
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "manifest.json").write_text('{"format": 1}')
    expected = (
        r"copy is a model directory of format 1; .* reads 2 and 3: convert .* or train again.*is .*d905683"
    )
    with pytest.raises(ValueError, match=expected):
        read(copy)


def test_an_old_key_in_the_config_is_told_its_new_name(copy):
    (copy / "config.json").write_text('{"sequence": {"picture_size": [64, 64]}}')
    expected = r"config\.json: config key sequence\.picture_size is now called sequence\.image_size"
    with pytest.raises(ValueError, match=expected):
        load_model(copy)


def test_a_cut_short_replacement_is_explained(copy):
    copy.rename(copy.with_name(".gone.old"))
    with pytest.raises(FileNotFoundError, match=r"a save was cut short: .*\.gone\.old"):
        load_model(copy.with_name("gone"))


_ON_A_MESH = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
from tests.helpers.tiny_model import noise
from unitoken_jax import UniToken
from unitoken_jax.config import MeshConfig
from unitoken_jax.model.sharding import make_mesh

model = UniToken.load(sys.argv[1], mesh=make_mesh(MeshConfig(data=1, fsdp=2, tensor=2)))
assert len(model.params["decoder"]["lm_head"]["kernel"].addressable_shards) == 4
assert model.params["decoder"]["lm_head"]["kernel"].addressable_shards[0].data.shape == (16, 200)
(drawn,) = model.image_results(["a red circle"])
(answer,) = model.text_results([[noise(0), "what is this ?"]])
print(json.dumps([drawn.tokens.tolist(), answer.tokens.tolist()]))
"""


@pytest.mark.slow
def test_on_a_mesh_of_four_devices(saved):
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _ON_A_MESH, str(saved)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    drawn, answer = json.loads(done.stdout)
    assert drawn == tiny_model().image_results(["a red circle"])[0].tokens.tolist()
    assert answer == tiny_model().text_results([[noise(0), "what is this ?"]])[0].tokens.tolist()
