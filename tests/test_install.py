"""An installed package has all that the first commands need: sdist and wheel, and an editable install."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

from unitoken_jax import pretrained

pytestmark = pytest.mark.slow  # builds and installs twice, and starts Python a dozen times

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = ("unitoken_jax", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")
COMMANDS = (
    "--version",
    "plan --help",
    "train --show-config quickstart:stage1",
    "train --show-config stage2:unitoken_34b --config.train.steps=7",
)
# With the model inside the package, which each of them finds.
FIRST_MINUTE = (
    ["generate", "--prompt", "a red circle above a blue 7", "--out", "a.png"],
    ["answer", "--image", "a.png", "--question", "what is in the image?"],
    ["inspect"],
)


def run(*command: object, cwd: pathlib.Path) -> str:
    """What `command` prints, run in `cwd` by a Python that sees no checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(what: str, folder: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Builds "sdist", "wheel" or "editable" of the sources in `folder`, as pip does, without a network."""
    out.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta as b; print(b.build_{what}({str(out)!r}))"
    return out / run(sys.executable, "-c", code, cwd=folder).splitlines()[-1]


def install(wheel: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The `unitoken` of a new environment in `folder` that has `wheel`, and otherwise our dependencies."""
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", wheel, cwd=folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names adds its packages, but not what its own .pth files would: no checkout.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "unitoken"


def files_in(folder: pathlib.Path) -> set[str]:
    """The files below `folder`, but what Python compiled."""
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if "__pycache__" not in name}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what the package is built from, so that nothing built before takes part."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_the_first_commands_run_in_an_empty_folder(kind, sources, tmp_path):
    if kind == "wheel":  # out of the sdist, which thereby has everything too
        shutil.unpack_archive(build("sdist", sources, tmp_path / "built"), tmp_path)
        (built_from,) = tmp_path.glob("unitoken_jax-*")
    else:
        built_from = sources
    unitoken = install(build(kind, built_from, tmp_path / "built"), tmp_path / "environment")
    (empty := tmp_path / "empty").mkdir()
    *_, shown = [run(unitoken, *command.split(), cwd=empty) for command in COMMANDS]
    (empty / "my.py").write_text(shown)
    assert (
        run(unitoken, "train", "--show-config", "my.py", cwd=empty).splitlines()[1:] == shown.splitlines()[1:]
    )
    assert [path.name for path in empty.iterdir()] == ["my.py"]  # no command wrote anything

    find = (
        "import pathlib, unitoken_jax as u; print(pathlib.Path(u.__file__).parent); "
        "print(u.UniToken.load().config.decoder.width)"
    )
    printed = run(unitoken.with_name("python"), "-c", find, cwd=empty).split()
    package = pathlib.Path(printed[0])
    if kind == "editable":
        assert package == sources / "unitoken_jax"
    else:
        written, answer, shown = [run(unitoken, *command, cwd=empty) for command in FIRST_MINUTE]
        assert written == "a.png\n"
        assert answer.endswith("\n")
        assert shown.startswith(f"{package / 'pretrained' / 'finished'}: made ")
        assert {path.name for path in empty.iterdir()} == {"my.py", "a.png"}
        expected = files_in(sources / "unitoken_jax") | {
            f"configs/{name}" for name in files_in(sources / "configs")
        }
        assert files_in(package) == expected
        for name in pretrained.NAMES:  # of all that a model directory holds
            assert f"pretrained/{name}/params/manifest.ocdbt" in expected
