"""Benchmark files: what is read, and what every kind of damage is called."""

import base64
import csv
import io

import pytest
from PIL import Image, ImageFile, PngImagePlugin

from tests.helpers.benchmark_files import base64_image, write_tsv
from tests.helpers.tiny_model import noise
from unitoken_jax.evaluate.understanding.prompts import choice_text, find_template
from unitoken_jax.evaluate.understanding.table import (
    TableError,
    check_images,
    decode_image,
    literal_list,
    read_table,
    row_images,
    write_table,
)


def read(tmp_path, *rows, **settings):
    return read_table(write_tsv(tmp_path / "d.tsv", *rows), **settings)


def test_cells_of_any_text_and_size_come_back(tmp_path):
    text = 'tab\there, "quotes", two\nlines,\rreturn, Größe 图'
    large = "x" * 300_000  # above the csv module's own limit
    limit = csv.field_size_limit()
    write_table(tmp_path / "d.tsv", ["index", "a", "b"], [["7", text, large], ["8", "", "nul\0"]])
    table = read_table(tmp_path / "d.tsv")
    assert [list(row.values()) for row in table.rows] == [["7", text, large], ["8", "", "nul\ufffd"]]
    assert (table.lines, csv.field_size_limit()) == ([2, 5], limit)
    assert table.location(1, "a").endswith("d.tsv:5 (index 8), column 'a'")


def test_images_may_be_shared_listed_or_absent(tmp_path):
    one, two = base64_image(1), base64_image(2, "JPEG")
    rows = [
        ["1", one],
        ["2", "1"],
        ["3", str([one, two])],
        ["4", ""],
        ["5", "3"],
        ["6", base64_image(3, mode="LA")],
    ]
    table = read(tmp_path, ["index", "image"], *rows)
    assert table.without_image == 1
    assert row_images(table) == [[one], [one], [one, two], [one, two], [rows[5][1]]]
    assert decode_image(table, 2, two).size == (24, 16)
    assert read_table(table.path, images=False).columns == ("index",)
    assert len(read_table(table.path, images=False).rows) == 5


def test_what_pandas_writes_for_nothing_is_nothing_and_a_text_is_a_text(tmp_path):
    header = ["index", "image", "question", "hint", "A", "B", "C", "answer", "category", "prediction"]
    image = base64_image()
    table = read(
        tmp_path,
        header,
        ["1", image, "nan", "nan", "None", "nan", "NaN", "nan", "nan", "nan"],
        ["2", image, "?", "<NA>", "N/A", "null", "nano", "B", "x", "B"],
        ["3", "nan", "?", "", "a", "b", "c", "B", "x", "B"],
    )
    assert table.left_out == {"3"}
    first, second = ([row[name] for name in header if name not in ("image", "index")] for row in table.rows)
    assert first == ["nan", "", "None", "", "", "nan", "", "nan"]
    assert second == ["?", "", "N/A", "null", "nano", "B", "x", "B"]
    assert choice_text(table.rows[0], find_template("direct")).startswith(
        "Question: nan\nOptions:\nA. None\nAnswer"
    )


def test_a_reference_may_lead_to_another_one(tmp_path):
    image = base64_image()
    table = read(tmp_path, ["index", "image"], ["1", "2"], ["2", "3"], ["3", image], ["4", " 1 "])
    assert row_images(table) == [[image]] * 4


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), NotImplementedError("x"), ValueError("x"), AssertionError]
)
@pytest.mark.parametrize("function", ["open", "load"])
def test_whatever_a_reader_of_images_raises_is_the_rows_fault(tmp_path, monkeypatch, error, function):
    table = read(tmp_path, ["index", "image"], ["1", base64_image()])

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(*((Image, "open") if function == "open" else (ImageFile.ImageFile, "load")), fails)
    with pytest.raises(TableError, match=r"d\.tsv:2 \(index 1\), column 'image': ") as raised:
        check_images(table, row_images(table))
    assert raised.value.__cause__ is not None  # for --debug


def test_an_image_with_a_large_text_is_named(tmp_path):
    text, data = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text("a", "x" * 2_000_000, zip=True)
    noise(0).save(data, "PNG", pnginfo=text)
    table = read(tmp_path, ["index", "image"], ["1", base64.b64encode(data.getvalue()).decode()])
    with pytest.raises(
        TableError, match=r"d\.tsv:2 \(index 1\), column 'image': .*Decompressed data too large"
    ):
        check_images(table, row_images(table))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "d.tsv: empty"),
        ([["index", "image"]], "holds no rows"),
        ([["index", "image"], ["1", ""]], "holds no rows with an image"),
        ([["index"], ["1"]], "d.tsv: lacks the columns image; it has index"),
        ([["index", "image", "image"], ["1", "", ""]], "d.tsv:1: column 'image' occurs twice"),
        ([["index", "image"], ["1", "x", "y"]], "d.tsv:2: 3 cells, the header names 2"),
        ([["index", "image"], ["1", "x"], ["1", "y"]], "d.tsv:3, column 'index': 1 again; it is at line 2"),
        ([["index", "image"], [" ", "x"]], "d.tsv:2, column 'index': empty"),
    ],
)
def test_bad_files(tmp_path, rows, message):
    with pytest.raises(TableError, match=message):
        read(tmp_path, *rows, need=("image",))


def test_files_of_another_kind(tmp_path):
    (tmp_path / "d.tsv").write_bytes(b"index\n\xff\n")
    with pytest.raises(TableError, match=r"d\.tsv: not UTF-8 \(.*d\.tsv:2: "):
        read_table(tmp_path / "d.tsv")
    (tmp_path / "d.tsv").write_text('index\timage\n1\t"open\n')
    with pytest.raises(TableError, match=r"d\.tsv:2: .* quotation mark not closed"):
        read_table(tmp_path / "d.tsv")
    (tmp_path / "d.tsv").write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(TableError, match=r"d\.tsv: an Excel or zip file, whatever its name"):
        read_table(tmp_path / "d.tsv")
    with pytest.raises(TableError, match=r"only tab-separated .* PRED_FORMAT=tsv"):
        read_table(tmp_path / "d.xlsx")
    with pytest.raises(TableError, match="a folder; expected a tab-separated file"):
        read_table(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file at .*none\.tsv"):
        read_table(tmp_path / "none.tsv")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("9", r"d\.tsv:3 \(index 2\), column 'image': refers to the image of index 9, which is no row"),
        ("2", "refers to the image of index 2, which has none of its own"),
        ("3", "refers to the image of index 3, which has none"),
        ("4", "refers to the image of index 2, which has none of its own but refers back"),
        ("\u00e9" * 80, r"d\.tsv:3 \(index 2\), column 'image': broken base64"),
        (f"[0x{'f' * 5000}]", "is no Python list"),  # more digits than Python writes
        ("[oops]", "is no Python list"),
        ("[]", "is no Python list"),
        ("%" * 80, r"d\.tsv:3 \(index 2\), column 'image': broken base64"),
        (base64_image()[:-3], "broken base64"),
        (base64.b64encode(b"no image at all" * 9).decode(), "the base64 text is no usable image"),
    ],
)
def test_bad_images(tmp_path, cell, message):
    rows = [["1", base64_image()], ["2", cell], ["3", ""], ["4", "2"]]
    table = read(tmp_path, ["index", "image"], *rows)
    with pytest.raises(TableError, match=message):
        decode_image(table, 1, row_images(table)[1][0])


def test_an_image_that_is_cut_off_is_found_by_decoding(tmp_path):
    data = base64.b64decode(base64_image(5, "JPEG"))
    cut = base64.b64encode(data[: len(data) * 9 // 10]).decode()
    table = read(
        tmp_path, ["index", "image"], ["1", base64_image()], ["2", "1"], ["3", str([base64_image(), cut])]
    )
    with pytest.raises(TableError, match=r"d\.tsv:4 \(index 3\), column 'image': .*damaged or truncated"):
        check_images(table, row_images(table))
    check_images(table, row_images(table)[:2])


def test_lists_are_read_without_running_them(tmp_path):
    table = read(tmp_path, ["index", "answer"], ["1", "['a', 2]"], ["2", "__import__('os').getcwd()"])
    assert literal_list(table, 0, "answer") == ["a", "2"]
    with pytest.raises(TableError, match=r"\(index 2\), column 'answer': .* is no Python list"):
        literal_list(table, 1, "answer")
