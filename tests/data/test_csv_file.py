"""CSV files: every row is found, read, and named by its line, whatever stands in the rows around it."""

import csv
import io
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unitoken_jax.data.csv_file import CsvRecords, scan_csv
from unitoken_jax.sequence.errors import ConversationError

CELLS = st.text(st.sampled_from('ab é🙂,"\n\r\x85\u2028'), max_size=6)


def records(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return pickle.loads(pickle.dumps(CsvRecords(str(path), scan_csv(str(path)))))


def lines(rows):
    return [int(rows.location(i).rsplit(":", 1)[1]) for i in range(len(rows))]


@given(st.lists(st.tuples(CELLS, CELLS), max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_rows_that_a_csv_writer_wrote(tmp_path_factory, written, end, mark):
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if end == "\n" else csv.QUOTE_MINIMAL  # else it would not quote a lone \r
    csv.writer(text, lineterminator=end, quoting=quoting).writerows([("one", "two"), *written])
    encoded = text.getvalue().encode("utf-8-sig" if mark else "utf-8")
    rows = records(tmp_path_factory.mktemp("csv") / "x.csv", encoded)
    expected = [cells for cells in written if any(cell.encode().strip() for cell in cells)]
    assert [tuple(rows.read(i).values()) for i in range(len(rows))] == expected


BROKEN = [
    ('a.png,"open', r"not valid CSV \(unexpected end of data\): put a text between double quotes"),
    ('a.png,"clo"sed', r"not valid CSV \(',' expected after '\"'\)"),
    ("a.png,red, blue", r"3 cells, but 2 columns \(file_name, text\): put a text that has commas between"),
    ("a.png", r"1 cell, but 2 columns"),
    ('a.png,"open, "again', r"not valid CSV"),
    ("a.png,a\rb", r"not valid CSV"),
    (b"a.png,\xe9t\xe9", r"not UTF-8 .*; save the file as UTF-8"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN)
def test_a_broken_row_costs_no_other(tmp_path, broken, message):
    broken = broken if isinstance(broken, bytes) else broken.encode()
    good = [b"file_name,text", b'1.png,"red\n""door"""', b"", b"2.png,green", b",", b'3.png,5" pipe']
    rows = records(tmp_path / "x.csv", b"\n".join([*good[:3], broken, *good[3:]]))
    assert lines(rows) == [2, 5, 6, 8]
    with pytest.raises(ConversationError, match=rf"x\.csv:5: {message}"):
        rows.read(1)
    texts = [rows.read(i)["text"] for i in (0, 2, 3)]
    assert texts == ['red\n"door"', "green", '5" pipe']


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no header: expected the names of the columns"),
        (b"\n1.png,red\n", "no header"),
        (b"file_name,text,text\n", "the header has text twice: give each column its own name"),
        ("file_name,text\n".encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
        (b"file_name,t\xe9xt\n", "not UTF-8"),
        (b'file_name,"text\n', r"not valid CSV \(unexpected end of data\)"),
    ],
)
def test_a_header_that_cannot_be_read(tmp_path, data, message):
    with pytest.raises(ConversationError, match=rf"x\.csv:1: {message}"):
        records(tmp_path / "x.csv", data)


def test_empty_columns_of_a_spreadsheet_are_no_matter(tmp_path):
    rows = records(tmp_path / "x.csv", " file_name , text,,\n1.png,red,,\n,,,\n")
    assert len(rows) == 1
    assert rows.read(0) == {"file_name": "1.png", "text": "red", "": ""}
