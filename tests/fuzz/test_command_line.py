"""Any command line: done, or refused with one line; nothing half-written, and no traceback."""

import contextlib
import io
import pathlib
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.damage import odd_texts
from tests.helpers.benchmark_files import MMMU_HEADER, geneval_line, mmmu_rows, write_lines, write_tsv
from tests.helpers.host_data import DRAWING, QUESTION, TEXT, write_data
from tests.helpers.tiny_model import CONFIG, noise, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.cli import main
from unitoken_jax.unitoken import UniToken

FILES = (
    "model",
    "data.jsonl",
    "MMMU_DEV_VAL.tsv",
    "prompts.jsonl",
    "image.png",
    "config.py",
    "folder",
    "none",
)
NUMBERS = ("0", "1", "2", "-1", "0.5", "nan", "1e400", "4294967296", "0x10", "16x16", "0/2")
WORDS = ("MMMU", "GenEval", "int8", "vlmevalkit", "anyres", "float32", "v5e:2x2", "a red circle")
OUTPUTS = ("out", "out.png", "out.json", "none/out", "folder")
# What would train, compile or write a model for minutes: it is enough that it is reached.
LONG = {
    "unitoken_jax.quickstart.run": "run",
    "unitoken_jax.ablate.run": "run",
    "unitoken_jax.train.loop": "train",
    "unitoken_jax.planning.search": "run",
    "unitoken_jax.cli.doctor": "run",
}


class Reached(ValueError):
    """The verb has checked everything, and begins with what takes long."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    save_model(folder / "model", CONFIG, tiny_params(), tiny_tokenizer())
    write_data(folder, [QUESTION, DRAWING, TEXT])
    write_tsv(folder / "MMMU_DEV_VAL.tsv", MMMU_HEADER, *mmmu_rows())
    write_lines(folder / "prompts.jsonl", geneval_line("a bench"))
    noise(0).save(folder / "image.png")
    (folder / "config.py").write_text("def get_config():\n    return {'train': {'steps': 2}}\n")
    (folder / "folder").mkdir()
    return folder


@pytest.fixture(scope="module")
def stubs():
    def reached(*_, **__):
        raise Reached("reached")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UniToken, "load", reached)
        patch.setattr("unitoken_jax.generate.tokenize.Runtime.load", reached)
        for module, function in LONG.items():
            patch.setitem(sys.modules, module, types.SimpleNamespace(**{function: reached}))
        yield patch


def parsers(parser, words=()):
    """(words, parser) of each verb and word."""
    inner = [action for action in parser._actions if isinstance(action.choices, dict)]
    if not inner:
        yield words, parser
    for action in inner:
        for name, below in action.choices.items():
            yield from parsers(below, (*words, name))


PARSERS = list(parsers(main.build_parser()))
values = st.one_of(*map(st.sampled_from, (FILES, NUMBERS, WORDS, OUTPUTS)), odd_texts)


@st.composite
def command_lines(draw):
    """A verb with the options that it must have and some of the others, nearly all of them well spelt."""
    words, parser = draw(st.sampled_from(PARSERS))
    line = list(words)
    for action in parser._actions:
        option = action.option_strings[0] if action.option_strings else None
        if option in ("-h", "--debug") or not (action.required or draw(st.integers(0, 3)) == 0):
            continue
        if draw(st.integers(0, 30)) == 0:
            option = draw(odd_texts)
        line += [option] if option else []
        if action.nargs != 0:
            fitting = OUTPUTS if action.dest in main.OUTPUT_OPTIONS else FILES if action.metavar else NUMBERS
            line.append(draw(st.sampled_from([str(choice) for choice in action.choices or fitting]) | values))
    if draw(st.integers(0, 9)) == 0:
        line.append(
            f"--config.{draw(st.sampled_from(['train.steps', 'data.rows', 'x', 'train']))}={draw(values)}"
        )
    return line


def contents(folder: pathlib.Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if ".index/" not in f"{path}/"}


@given(line=command_lines())
def test_any_command_line(folder, stubs, line):
    stubs.chdir(folder)
    before = contents(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main.main(line)
        except SystemExit as end:
            code = end.code
    error = err.getvalue()
    assert code in (0, 1, 2), error
    assert "Traceback" not in error
    assert "unexpectedly" not in error, error
    if code == 2:
        assert error.strip()
        assert error.replace("\n", "").isprintable() or "usage:" in error, error
        if "reached" not in error:
            assert contents(folder) == before
    for path in sorted(contents(folder) - before, reverse=True):
        pathlib.Path(path).rmdir() if pathlib.Path(path).is_dir() else pathlib.Path(path).unlink()
