"""A damaged cell of a benchmark's table is named by file and line; every other question is as without it."""

import csv
import hashlib
import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.damage import damaged_bytes, odd_texts
from tests.helpers.benchmark_files import MMMU_HEADER, mmmu_rows, write_tsv
from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.evaluate.understanding.prompts import find_template
from unitoken_jax.evaluate.understanding.run import check_rows, find_understanding
from unitoken_jax.evaluate.understanding.table import TableError, check_images, row_images
from unitoken_jax.sequence.build import build_prompt

TEMPLATE = find_template("vlmevalkit")
BAD = 1  # the row that is damaged; its line is two further on
numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    save_model(folder / "model", CONFIG, tiny_params(), tiny_tokenizer())
    return folder


def questions(path, folder) -> dict[str, str]:
    """Index -> digest of the prompt, of every row, as `unitoken evaluate run` checks and asks them."""
    benchmark, dataset = find_understanding("MMMU", path)
    table = benchmark.read(path, dataset)
    cells = row_images(table)
    check_rows(folder / "model", benchmark, table, TEMPLATE)
    check_images(table, cells)
    digests = {}
    for number, row in enumerate(table.rows):
        conversation = benchmark.conversation(table, cells, TEMPLATE, number)
        prompt = build_prompt(conversation, tiny_tokenizer().literal(), CONFIG)
        content = prompt.tokens.tobytes() + prompt.crops.tobytes()
        digests[row["index"]] = hashlib.sha256(content).hexdigest()
    return digests


@pytest.fixture(scope="module")
def expected(folder):
    digests = questions(write_tsv(folder / "MMMU_DEV_VAL.tsv", MMMU_HEADER, *mmmu_rows()), folder)
    assert len(set(digests.values())) == len(mmmu_rows())
    return digests


def check(path, folder, expected, names_line=True):
    try:
        found = questions(path, folder)
    except (TableError, ValueError) as error:
        message = str(error)
        assert str(path) in message
        assert len(message) < 1500
        if names_line:
            assert f"{path}:{BAD + 2}" in message, message
        return
    others = [(index, digest) for index, digest in expected.items() if index != str(BAD)]
    assert [(index, digest) for index, digest in found.items() if (index, digest) in others] == others


@given(data=st.data())
def test_a_cell(folder, expected, data):
    rows = mmmu_rows()
    column = data.draw(st.integers(0, len(MMMU_HEADER) - 1))
    if MMMU_HEADER[column] == "image" and data.draw(st.booleans()):
        cell = data.draw(damaged_bytes(rows[BAD][column].encode())).decode("latin-1")
    else:
        cell = data.draw(odd_texts)
    rows[BAD][column] = cell
    table = io.StringIO(newline="")
    csv.writer(table, delimiter="\t", lineterminator="\n").writerows([MMMU_HEADER, *rows])
    path = folder / f"{next(numbers)}" / "MMMU_DEV_VAL.tsv"
    path.parent.mkdir()
    path.write_bytes(table.getvalue().encode("utf-8", "surrogatepass"))
    # Another row may refer to this one, or have its index; a new line in a cell moves what is behind it.
    moves = MMMU_HEADER[column] in ("index", "image") or len(cell.splitlines()) > 1
    check(path, folder, expected, names_line=not moves)


@given(data=st.data())
def test_the_bytes_of_a_line(folder, expected, data):
    path = folder / f"{next(numbers)}" / "MMMU_DEV_VAL.tsv"
    path.parent.mkdir()
    lines = write_tsv(path, MMMU_HEADER, *mmmu_rows()).read_bytes().split(b"\n")
    lines[BAD + 1] = data.draw(damaged_bytes(lines[BAD + 1]))
    path.write_bytes(b"\n".join(lines))
    check(path, folder, expected, names_line=False)
