"""A look at data: tokens in colour, images on a sheet."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.helpers.host_data import DRAWING, QUESTION, TEXT, with_sequence, write_data
from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.cli import main
from unitoken_jax.config import SourceConfig
from unitoken_jax.data.index import open_index
from unitoken_jax.inspection import show
from unitoken_jax.sequence import build

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path, [QUESTION, DRAWING, TEXT])


def example(data, row, model=CONFIG):
    conversation = open_index(SourceConfig(str(data)), model, TOKENIZER).conversation(row)
    return conversation, build.build_example(conversation, TOKENIZER, model)


@pytest.mark.parametrize("row", range(3))
def test_runs_cover_every_token_with_its_kind_and_mask(data, row):
    _, made = example(data, row)
    found = show.token_runs(made, TOKENIZER)
    assert [run.start for run in found] == np.cumsum([0, *(run.length for run in found)])[:-1].tolist()
    assert sum(run.length for run in found) == len(made.tokens)
    for run in found:
        here = slice(run.start, run.start + run.length)
        assert ((made.labels[here] >= 0) == run.learnt).all()
        if run.kind == show.TEXT:
            assert run.words == TOKENIZER.decode(made.tokens[here].tolist())
    continuous = [run for run in found if run.kind == show.CONTINUOUS]
    assert sum(run.length for run in continuous) >= (made.image_feature_index >= 0).sum()
    assert len(continuous) == (row == 0)
    assert sum(run.kind == show.DISCRETE for run in found) == (row < 2)


def test_a_question_and_a_drawing_read_as_they_are(data):
    plain = show.format_runs(show.token_runs(example(data, 0)[1], TOKENIZER), colour=False)
    assert plain.startswith("<s>")
    assert "[20 discrete]" in plain  # 16 codes, four new-lines
    assert "what is this ? red" in plain
    assert "{red}{<reserved08706>}" in plain
    drawing = show.format_runs(show.token_runs(example(data, 1)[1], TOKENIZER), colour=False)
    assert drawing.startswith("<s>a red blue<reserved08706>{")
    assert "{[20 discrete]}" in drawing
    colours = show.format_runs(show.token_runs(example(data, 0)[1], TOKENIZER), colour=True)
    assert "\x1b[36m[20 discrete]\x1b[0m" in colours
    assert "\x1b[37;4mred\x1b[0m" in colours
    assert "\x1b[35m" in colours


@pytest.mark.parametrize("model", [CONFIG, with_sequence(encoding="continuous", resolution="base")])
def test_the_sheet_shows_what_the_encoders_see(data, model):
    conversation, made = example(data, 0, model)
    sheet = np.asarray(show.image_sheet(conversation, made, model))
    side, gap, line = show._SIDE, show._GAP, show._LINE
    columns = 1 + len(made.images) + len(made.crops)
    assert sheet.shape == (side + line + 2 * gap, columns * (side + gap) + gap, 3)
    last = made.crops[-1]
    left = gap + (columns - 1) * (side + gap)
    expected = Image.fromarray(last).resize((side, side))
    np.testing.assert_array_equal(
        sheet[gap + line : gap + line + side, left : left + side], np.asarray(expected)
    )


def test_the_command_line(data, tmp_path, capsys):
    save_model(tmp_path / "model", CONFIG, tiny_params(), TOKENIZER)
    with open(data, "a") as file:
        file.write(json.dumps({"conversations": []}) + "\n")
    sheet = tmp_path / "sheet.png"
    command = ["inspect", str(data), "--model", str(tmp_path / "model"), "--sheet", str(sheet)]
    assert main.main([*command, "--row", "1", "--row", "2"]) == 0
    out = capsys.readouterr().out
    assert "4 rows, 1 of them bad\n  1 format\n" in out
    assert f"row 1 ({data}:2): " in out
    assert "how many red blue green ?" in out
    assert "\x1b[" not in out
    with Image.open(sheet) as image:
        assert image.format == "PNG"
    assert main.main([*command, "--color", "always"]) == 0
    assert "\x1b[36m" in capsys.readouterr().out
    assert main.main([*command, "--row", "7"]) == 2
    assert "it has rows 0 to 3" in capsys.readouterr().err
    assert main.main([*command, "--row", "3"]) == 2
    assert "data.jsonl:4: " in capsys.readouterr().err
    assert main.main(["inspect", str(tmp_path / "model")]) == 0


def test_a_folder_of_images_is_known_for_data(data, capsys):
    (data.parent / "captions.csv").write_text(
        f"file_name,text\n{data.name}-0.png,a red circle\nno.png,blue\n"
    )
    assert main.main(["inspect", str(data.parent), "--row", "1"]) == 0
    out = capsys.readouterr().out
    assert f"{data.parent}/captions.csv: 4 rows, 2 of them bad\n  2 missing_image\n" in out
    assert f"row 1 ({data.parent}/captions.csv:2 (draw)): " in out
    assert "a red circle" in out
