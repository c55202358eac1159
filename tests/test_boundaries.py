"""Who may import whom: rooms in order, host code without jax, model code without data libraries."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "unitoken_jax"

# A room imports from itself and from the rooms above it: settings first, the command line last.
ROOMS = (
    "setting_ranges",
    "config",
    "batch",
    "config_file",
    "storage",
    "sequence",
    "model",
    "data",
    "scenes",
    "pretrained",
    "checkpoint",
    "convert",
    "generate",
    "unitoken",
    "train",
    "evaluate",
    "inspection",
    "planning",
    "finetune",
    "serve",
    "quickstart",
    "ablate",
    "cli",
)
HOST_ROOMS = ("storage", "sequence", "data", "scenes", "pretrained", "convert/torch")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
BRINGS_JAX = JAX | {"grain", "tensorflow", "torch", "transformers"}  # grain imports jax itself
HOST = sorted(path for folder in HOST_ROOMS for path in (PACKAGE / folder).rglob("*.py"))
WITHOUT_DATA_LIBRARIES = ("model", "train", "generate", "checkpoint")
DATA_LIBRARIES = ("grain", "tensorflow_datasets", "tensorflow", "ml_collections", "matplotlib", "torch")


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def file_of(module: str) -> pathlib.Path | None:
    """The package's file that holds `module`; None for a name inside a module, or another package's."""
    base = PACKAGE.parent.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def at_import(node: ast.AST):
    """Nodes that run when the module is imported: no function bodies, nothing for type checkers alone, and
    no public names that a room imports when they are first asked for."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.With) and "lazy_api_imports" in ast.unparse(child.items[0]):
            continue
        yield child
        yield from at_import(child)


def imported(path: pathlib.Path, anywhere: bool) -> set[str]:
    """Full names of modules that `path` imports, and of what it takes from them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if anywhere else at_import(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def reached(start: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
    """Every file of the package that importing `start` runs, and the file that asked for it."""
    asked_by, todo = {start: start}, [start]
    while todo:
        path = todo.pop()
        modules = imported(path, anywhere=False) | {module_of(path)}
        for module in modules:
            parts = module.split(".")
            for depth in range(1, len(parts) + 1):  # importing a.b.c runs a, a.b and a.b.c
                found = file_of(".".join(parts[:depth])) if parts[0] == PACKAGE.name else None
                if found and found not in asked_by:
                    asked_by[found] = path
                    todo.append(found)
    return asked_by


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def arrows(path: pathlib.Path) -> set[str]:
    """Modules of the package that `path` imports, in functions and for type checkers too."""
    return {
        module_of(file)
        for name in imported(path, anywhere=True)
        if name.startswith(PACKAGE.name + ".") and (file := file_of(name))
    }


def test_every_file_is_in_a_room():
    names = {path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir()}
    assert names - {"__init__", "__main__", "__pycache__", "py.typed"} == set(ROOMS)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_of)
def test_no_arrow_goes_back_up(path):
    room = room_of(module_of(path))
    if room in ROOMS:  # the package itself and __main__ name what they stand for
        above = ROOMS[: ROOMS.index(room) + 1]
        wrong = {module for module in arrows(path) if room_of(module) not in ("", *above)}
        assert not wrong, f"{path} is in room {room}, which stands before that of {wrong}"


def test_no_circle_of_imports():
    """Not even one that a late import hides."""
    after = {module_of(path): arrows(path) - {PACKAGE.name} for path in PACKAGE.rglob("*.py")}
    after.pop(PACKAGE.name)
    for module, others in after.items():  # importing a package is no arrow to what it shows lazily
        others -= {module} | {other for other in others if module.startswith(other + ".")}
    while free := [module for module, others in after.items() if not others & after.keys()]:
        for module in free:
            del after[module]
    assert not after, f"in or behind a circle: {sorted(after)}"


@pytest.mark.parametrize("path", HOST, ids=module_of)
def test_host_code_never_names_jax(path):
    names = {name.split(".")[0] for name in imported(path, anywhere=True)}
    assert not names & JAX, f"{path} imports {names & JAX}"


@pytest.mark.parametrize("path", HOST, ids=module_of)
def test_importing_host_code_reaches_no_jax(path):
    for found, asked_by in reached(path).items():
        names = {name.split(".")[0] for name in imported(found, anywhere=False)}
        assert not names & BRINGS_JAX, f"{found} (imported by {asked_by}) imports {names & BRINGS_JAX}"


ROOMS_WITH_NAMES = [path for path in sorted(PACKAGE.rglob("__init__.py")) if "lazy_api" in path.read_text()]


@pytest.mark.parametrize("path", ROOMS_WITH_NAMES, ids=module_of)
def test_every_public_name_of_a_room_is_there(path):
    room = importlib.import_module(module_of(path))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(room.__name__ + "."):
            for alias in node.names:
                assert alias.name in dir(room)
                assert getattr(room, alias.name) is getattr(importlib.import_module(node.module), alias.name)
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        room.missing  # noqa: B018


def test_the_reader_of_imports_sees_what_it_should(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a1\ntry:\n    import a2.b\n"
        "except ImportError:\n    pass\nclass C:\n    import a3\n    def f():\n        import a4\n"
        "with epy.lazy_api_imports(globals()):\n    import a5\nwith other():\n    import a6\n"
    )
    assert imported(path, anywhere=False) == {"typing", "typing.TYPE_CHECKING", "a2.b", "a3", "a6"}
    assert {"a1", "a4", "a5"} < imported(path, anywhere=True)
    host = reached(PACKAGE / "data" / "loader.py")
    assert PACKAGE / "sequence" / "anyres.py" in host
    assert PACKAGE / "__init__.py" in host
    assert PACKAGE / "model" / "sharding.py" not in host


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_of)
def test_the_package_never_imports_the_configs_folder_or_tests(path):
    names = {name.split(".")[0] for name in imported(path, anywhere=True)}
    assert not names & {"configs", "tests", "pytest"}


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_host_code_runs_without_jax():
    modules = [module_of(path) for path in HOST]
    run(
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"found = set(sys.modules) & {BRINGS_JAX!r}\nassert not found, found"
    )


def test_model_code_imports_without_data_libraries():
    paths = sorted(path for folder in WITHOUT_DATA_LIBRARIES for path in (PACKAGE / folder).rglob("*.py"))
    modules = [
        module_of(path) for path in [*paths, PACKAGE / "checkpoint" / "model_directory.py"] if path.is_file()
    ]
    run(
        "import importlib, sys\n"
        f"for name in {DATA_LIBRARIES!r}: sys.modules[name] = None\n"  # an import of it now fails
        f"for name in {modules!r}: importlib.import_module(name)"
    )
