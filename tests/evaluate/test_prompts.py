"""Prompt files of the text-to-image benchmarks: their scorers' names and folders, and bad lines."""

import json
import random

import pytest
from PIL import Image

from tests.helpers.benchmark_files import geneval_line, write_lines
from unitoken_jax.evaluate.drawing.geneval import GENEVAL
from unitoken_jax.evaluate.drawing.prompts import PromptError
from unitoken_jax.evaluate.drawing.scenes import DRAW_SCENES
from unitoken_jax.evaluate.drawing.scorers import score_images
from unitoken_jax.evaluate.drawing.t2i_compbench import T2I_COMPBENCH
from unitoken_jax.evaluate.registry import find_benchmark, find_drawing
from unitoken_jax.scenes.prompts import random_pair
from unitoken_jax.scenes.scene import draw


def test_geneval(tmp_path):
    path = write_lines(tmp_path / "m.jsonl", geneval_line("a bench"), geneval_line("a dog"))
    first, second = GENEVAL.read(path, 4)
    assert first.files == tuple(f"00000/samples/0000{n}.png" for n in range(4))
    assert (second.text, second.source) == ("a dog", f"{path}:2")
    assert second.metadata == ("00001/metadata.jsonl", geneval_line("a dog") + "\n")
    assert (GENEVAL.number, GENEVAL.guidance, T2I_COMPBENCH.number, T2I_COMPBENCH.guidance) == (
        4,
        5.5,
        10,
        5.0,
    )


def test_t2i_compbench_counts_through_the_list(tmp_path):
    path = write_lines(tmp_path / "color_val.txt", "a red book\textra", "", "two cups, one blue.")
    first, second = T2I_COMPBENCH.read(path, 2)
    assert first.files == ("color/samples/a red book_000000.png", "color/samples/a red book_000001.png")
    assert second.files[1] == "color/samples/two cups, one blue._000003.png"
    assert second.metadata is None


@pytest.mark.parametrize("as_json", [False, True])
def test_rewritten_prompts_are_drawn_under_the_original_names(tmp_path, as_json):
    path = write_lines(tmp_path / "color_val.txt", "a red book", "a cup")
    lines = ["one large red book", "a cup of tea"]
    if as_json:
        lines = [json.dumps(lines[0]), json.dumps({"prompt": lines[1]})]
    first, second = T2I_COMPBENCH.read(path, 1, write_lines(tmp_path / "r", *lines))
    assert (first.text, first.files) == ("one large red book", ("color/samples/a red book_000000.png",))
    assert (second.text, second.source) == ("a cup of tea", f"{tmp_path / 'r'}:2")


@pytest.mark.parametrize(
    ("benchmark", "line", "message"),
    [
        (GENEVAL, "a bench", r"f:2: no line of this benchmark's metadata \(JSONDecodeError"),
        (GENEVAL, '{"tag": "x", "include": []}', "f:2: no line .*'prompt'"),
        (GENEVAL, '{"prompt": "a"}', "f:2: no line .*'tag'"),
        (GENEVAL, geneval_line("caf\\ud83d"), r"f:2: no line .*'\\ud83d' alone is half of a character"),
        (GENEVAL, '{"prompt": ' + "[" * 99_999 + "]" * 99_999 + "}", "f:2: no line .*nested too deep"),
        (GENEVAL, '{"tag": [], "include": [], "prompt": "a"}', "f:2: no line .*expected a text"),
        (DRAW_SCENES, geneval_line("caf\\ud83d"), r"f:2: no line .*'\\ud83d' alone is half of a character"),
        (GENEVAL, '{"tag": "x", "include": [], "prompt": " "}', "f:2: \"prompt\" is ' '"),
        (DRAW_SCENES, geneval_line("a bench"), "f:2: no line .*'category'"),
        (
            T2I_COMPBENCH,
            "black/white",
            "f:2: '/' in 'black/white': the benchmark's file names cannot hold it",
        ),
        (T2I_COMPBENCH, "a_b", "f:2: '_' in"),
        (T2I_COMPBENCH, "x" * 250, "f:2: too long for a file name"),
    ],
)
def test_bad_lines(tmp_path, benchmark, line, message):
    with pytest.raises(PromptError, match=message):
        benchmark.read(write_lines(tmp_path / "f", "", line), 4)


def test_bad_files(tmp_path):
    path = write_lines(tmp_path / "f", "a", "b")
    for lines, message in ((["a"], r"has 1 prompts, .* has 2"), (["a", "{}"], r":2: expected a prompt, or")):
        with pytest.raises(PromptError, match=message):
            T2I_COMPBENCH.read(path, 1, write_lines(tmp_path / "r", *lines))
    for lines, message in (
        (["a", '"caf\\ud83d"'], r"r:2: .*'\\ud83d' alone is half of a character"),
        (["a", '{"prompt": ' + "[" * 99_999], "r:2: .*nested too deep"),
    ):
        with pytest.raises(PromptError, match=message):
            T2I_COMPBENCH.read(path, 1, write_lines(tmp_path / "r", *lines))
    (tmp_path / "u").write_bytes(b"a\n\xed\xa0\xbd\n")  # a surrogate as UTF-8 would write it
    with pytest.raises(PromptError, match=r"u: not UTF-8 \(.*u:2: "):
        T2I_COMPBENCH.read(tmp_path / "u", 1)
    with pytest.raises(PromptError, match="holds no prompts"):
        T2I_COMPBENCH.read(write_lines(tmp_path / "f", ""), 1)
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        T2I_COMPBENCH.read(tmp_path / "none", 1)


def test_other_spellings_of_a_name():
    assert find_drawing("geneval") is GENEVAL
    assert find_drawing("T2I-CompBench") is find_benchmark("t2icompbench") is T2I_COMPBENCH
    with pytest.raises(ValueError, match="'MMMU' is no benchmark of images to draw"):
        find_drawing("MMMU")


def test_the_checker_judges_scenes_in_their_folders(tmp_path):
    rng = random.Random(0)
    for number, wrong in enumerate((False, True, False)):
        requirement, scene = random_pair("colours", rng, "train")
        samples = tmp_path / f"0000{number}" / "samples"
        samples.mkdir(parents=True)
        write_lines(samples.parent / "metadata.jsonl", json.dumps(requirement.to_json()))
        Image.fromarray(draw(() if wrong else scene, rng, "train")).save(samples / "00000.png")
    assert score_images(DRAW_SCENES, tmp_path)[0] == "DrawScenes (3 images): 0.667"
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["ok"] for row in results["images"]] == [True, False, True]
    assert results["images"][1]["file"] == "00001/samples/00000.png"

    Image.new("RGB", (9, 9)).save(samples / "00000.png")
    with pytest.raises(
        PromptError, match=r"00002.samples.00000\.png: an image to check is uint8\[24, 24, 3\]"
    ):
        score_images(DRAW_SCENES, tmp_path)
    with pytest.raises(PromptError, match="holds no 00000/metadata"):
        score_images(DRAW_SCENES, samples)
