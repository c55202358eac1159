"""The notebooks run from their first cell to their last, in order, in one folder, as a reader would."""

import ast
import importlib
import importlib.util
import pathlib
import subprocess

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def read(path):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, nbformat.NO_CONVERT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the notebooks run: an empty folder, in which they find the model inside the package."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, folder, monkeypatch):
    """Slow, since they compile, draw and train."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("UNITOKEN_STEPS", "4")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = read(path)
    client = nbclient.NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()  # raises CellExecutionError with the cell and its traceback
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_small_valid_and_ready_for_colab(path):
    nbformat = pytest.importorskip("nbformat")
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < 300_000
    assert not [name for name in ("/home/", "/tmp/", "/root/") if name in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_the_clone_or_asks_for_a_place(path, tmp_path, monkeypatch):
    first = next(cell for cell in read(path).cells if cell.cell_type == "code").source
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command[1:]))
    monkeypatch.chdir(path.parent)
    exec(first, {})
    assert ran == []  # it is installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(first, {})
    assert ran == [["-m", "pip", "install", "--quiet", ".."]]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="set SOURCE to 'git"):
        exec(first, {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_name_of_the_package_is_there(path):
    for cell in read(path).cells:
        if cell.cell_type != "code":
            continue
        code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("unitoken_jax"):
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{path.name}: {node.module} has no {', '.join(missing)}"
