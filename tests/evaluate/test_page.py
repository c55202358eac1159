"""HTML reports: well-formed, self-contained, and no model's answer can change them."""

import base64
import io
import pathlib

from PIL import Image

from tests.helpers.html_page import read_page
from unitoken_jax.evaluate import page
from unitoken_jax.evaluate.understanding import examples
from unitoken_jax.evaluate.understanding.scoring import Scored
from unitoken_jax.evaluate.understanding.table import Table


def test_whatever_a_model_says_stays_text(tmp_path):
    nasty = '</p></div><script>alert(1)</script> & "<b>'
    made = page.card([page.small_jpeg(Image.new("RGBA", (500, 100)))], {nasty: nasty}, "wrong")
    body = [
        page.heading(nasty),
        page.paragraph(nasty),
        page.table([nasty], [[nasty], [3.5]]),
        page.cards([made]),
    ]
    page.write_page(tmp_path / "a.html", nasty, body)
    found = read_page(tmp_path / "a.html")
    assert found.text.count(nasty) == 8
    assert "script" not in found.tags
    assert found.images == [("JPEG", (224, 45))]


def test_examples_say_where_a_text_was_cut_and_where_there_was_none():
    row = {"index": "1", "question": "q" * 700, "A": "red", "J": "blue", "answer": "A", "prediction": ""}
    table = Table(pathlib.Path("d.tsv"), tuple(row), [row], [2])
    (example,) = examples.choose(table, Scored(0.0, {}, [None], [False]), None)
    assert example["lines"]["question"] == "q" * 600 + " ..."
    assert example["lines"]["prediction"] == "(nothing)"
    row["question"] = "which?"
    (example,) = examples.choose(table, Scored(0.0, {}, [None], [False]), None)
    assert example["lines"]["question"] == "which?\nA. red\nJ. blue"


def test_what_is_transparent_becomes_white():
    data = base64.b64decode(page.small_jpeg(Image.new("RGBA", (8, 8), (255, 0, 0, 0))))
    with Image.open(io.BytesIO(data)) as image:
        assert min(image.getextrema())[0] > 250
