"""Where the command line keeps compiled programs, and that it never fails over it."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.cli.compile_cache import JAX_VARIABLE, KEEP_ALL, VARIABLE, enable


def test_the_default_folder_is_in_the_users_cache(tmp_path):
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = enable(environ)
    assert folder.parent == tmp_path / "unitoken_jax"
    assert folder.is_dir()
    assert environ[JAX_VARIABLE] == str(folder)
    assert KEEP_ALL.items() <= environ.items()


def test_it_can_be_moved_or_turned_off(tmp_path):
    moved = {VARIABLE: str(tmp_path / "here")}
    assert enable(moved).parent == tmp_path / "here"
    for environ in ({VARIABLE: "off"}, {JAX_VARIABLE: "elsewhere", VARIABLE: str(tmp_path)}):
        before = dict(environ)
        assert enable(environ) is None
        assert environ == before


def test_a_home_directory_is_expanded_or_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert enable({VARIABLE: "~/uc"}).parent == tmp_path / "home" / "uc"
    theirs = {JAX_VARIABLE: "~/jax"}
    assert enable(theirs) is None
    assert theirs[JAX_VARIABLE] == str(tmp_path / "home" / "jax")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does where no home is known
    assert enable({}) is None  # a default nobody typed
    with pytest.raises(ValueError, match=r"^~/uc: the home directory ~ is not known"):
        enable({VARIABLE: "~/uc"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


@pytest.mark.parametrize("place", ["a file", "read only"])
def test_a_folder_that_cannot_be_written_is_left_alone(place, tmp_path, monkeypatch):
    path = tmp_path / "cache"
    if place == "a file":
        path.write_text("")
    else:
        monkeypatch.setattr(os, "access", lambda *_: False)  # a mode would not stop root
    environ = {VARIABLE: str(path)}
    assert enable(environ) is None
    assert JAX_VARIABLE not in environ


def test_the_command_line_sets_it_before_jax_starts(tmp_path):
    code = (
        "import sys\n"
        "from unitoken_jax.cli import main as cli; sys.argv[1:] = ['inspect', 'nowhere']; cli.main()\n"
        "import jax; print(jax.config.jax_compilation_cache_dir)"
    )
    environ = os.environ | {VARIABLE: str(tmp_path)}
    environ.pop(JAX_VARIABLE, None)
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.stdout.strip().startswith(str(tmp_path)), done.stderr


# What the first image needs none of: most of these take longer to import than the model to load.
NOT_FOR_DRAWING = (
    *("array_record", "grain", "matplotlib", "ml_collections", "optax", "orbax", "safetensors", "scipy"),
    *("tensorboardX", "tensorflow", "tensorflow_datasets", "torch", "transformers"),
)
_DRAWING = f"""
import json, logging, sys
from unitoken_jax.cli import compile_cache, main
compile_cache.enable()
import jax
jax.config.update("jax_log_compiles", True)
logging.captureWarnings(True)
for _ in range(2):
    print("call", file=sys.stderr)
    assert main.main(["generate", "--model", "M", "--prompt", "a red circle", "--out", "a.png"]) == 0
    jax.clear_caches()
print(json.dumps(sorted(set(sys.modules) & set({NOT_FOR_DRAWING}))))
"""


def test_a_second_image_compiles_nothing_and_needs_no_library_of_training(tmp_path):
    save_model(tmp_path / "M", CONFIG, tiny_params(), tiny_tokenizer())
    environ = {name: value for name, value in os.environ.items() if name not in (JAX_VARIABLE, *KEEP_ALL)}
    environ[VARIABLE] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-c", _DRAWING], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    programs = ["stream_keys", "prefill", "decode_loop", "_pixels"]
    for number, log in enumerate(done.stderr.split("call\n")[1:]):
        assert re.findall(r"Compiling jit\((\w+)\)", log) == programs
        cached = re.findall(r"compilation cache hit for 'jit_(\w+)'", log)
        assert cached == (programs if number else [])
