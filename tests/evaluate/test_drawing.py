"""`unitoken evaluate` on text-to-image benchmarks with a tiny random model: folders, kills and repeats."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.benchmark_files import geneval_line, write_lines
from tests.helpers.html_page import read_page
from tests.helpers.tiny_model import CONFIG, tiny_model, tiny_params, tiny_tokenizer
from unitoken_jax import UniToken
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.cli import main
from unitoken_jax.config import differences
from unitoken_jax.evaluate import recipe as recipes
from unitoken_jax.evaluate.devices import load_model
from unitoken_jax.evaluate.drawing.geneval import GENEVAL
from unitoken_jax.evaluate.drawing.images import draw_missing, save_image
from unitoken_jax.evaluate.drawing.prompts import PromptError
from unitoken_jax.evaluate.drawing.run import check_prompts, draw_benchmark, write_recipe
from unitoken_jax.evaluate.drawing.t2i_compbench import T2I_COMPBENCH

PROMPTS = ["a red circle", "a blue square", "a red circle"]
SETTINGS = {"number": 2, "batch": 2}


def pixels(path):
    return np.asarray(Image.open(path))


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def drawn(model, tmp_path_factory):
    """T2I-CompBench++ from the command line, a prompt twice in the list."""
    out = tmp_path_factory.mktemp("t2i")
    data = write_lines(out / "color_val.txt", *PROMPTS)
    argv = ["evaluate", "--model", str(model), "--benchmark", "T2I-CompBench++", "--data", str(data)]
    assert main.main([*argv, "--out", str(out / "run"), "--number", "2", "--batch", "2", "--debug"]) == 0
    return out / "run"


def test_the_published_top_k_is_all_of_a_smaller_codebook(tmp_path):
    config = dataclasses.replace(CONFIG, generation=dataclasses.replace(CONFIG.generation, top_k=4000))
    save_model(tmp_path / "model", config, tiny_params(), tiny_tokenizer())
    data = write_lines(tmp_path / "color_val.txt", PROMPTS[0])
    draw_benchmark("T2I-CompBench++", tmp_path / "model", data, tmp_path / "run", number=1)
    assert recipes.load(tmp_path / "run" / "color" / "recipe.json")["settings"]["top_k"] == CONFIG.vq.codes


@pytest.mark.slow
def test_t2i_images_are_the_models_and_equal_prompts_get_different_ones(drawn):
    names = [f"{text}_{n:06d}.png" for n, text in enumerate(np.repeat(PROMPTS, 2))]
    samples = drawn / "color" / "samples"
    assert sorted(path.name for path in samples.iterdir()) == sorted(names)
    assert {path.name for path in drawn.rglob("*") if path.parent != samples} == {
        "color",
        "samples",
        "prompts.jsonl",
        "recipe.json",
        "report.html",
        "report.md",
    }
    expected = tiny_model().image_results(PROMPTS, number=2, guidance=5.0, batch=2)
    for name, drawing in zip(names, expected):
        np.testing.assert_array_equal(pixels(samples / name), np.asarray(drawing.image))
    assert len({drawing.tokens.tobytes() for drawing in expected}) == 6


@pytest.mark.slow
def test_a_killed_run_draws_only_what_is_missing(drawn, model, tmp_path, monkeypatch):
    data = drawn.parent / "color_val.txt"
    draw_benchmark("T2I-CompBench++", model, data, tmp_path, **SETTINGS)
    assert content(tmp_path) == content(drawn)
    (tmp_path / "color" / "samples" / "a red circle_000005.png").unlink()
    asked = []
    draw = UniToken.image_results
    spy = lambda self, texts, **s: asked.append(list(texts)) or draw(self, texts, **s)  # noqa: E731
    monkeypatch.setattr(UniToken, "image_results", spy)
    lines = draw_benchmark("T2I-CompBench++", model, data, tmp_path, **SETTINGS)
    assert asked == [["a red circle", "a red circle"]]
    assert lines[0].startswith("T2I-CompBench++: 2 images drawn, 6 below")
    assert content(tmp_path) == content(drawn)
    with pytest.raises(
        ValueError, match=r"choose another --out\) is another run's:\n  settings\.seed: 0 there, 1"
    ):
        draw_benchmark("T2I-CompBench++", model, data, tmp_path, seed=1, **SETTINGS)


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_what_the_next_one_ends(drawn, model, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from unitoken_jax.evaluate.drawing import images\n"
        "from unitoken_jax.evaluate.drawing.run import draw_benchmark\n"
        "save = images.save_image\n"
        "def dies(image, staging, file):\n"
        "    if '000003' in file.name:\n"
        "        staging.write_bytes(b'half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    save(image, staging, file)\n"
        "images.save_image = dies\n"
        "draw_benchmark('T2I-CompBench++', *sys.argv[1:], number=2, batch=2)"
    )
    argv = [str(model), str(drawn.parent / "color_val.txt"), str(tmp_path)]
    killed = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(tmp_path.glob("color/samples/*.png"))) == 3
    draw_benchmark("T2I-CompBench++", model, drawn.parent / "color_val.txt", tmp_path, **SETTINGS)
    assert content(tmp_path) == content(drawn)


def test_a_recipe_repeats_a_run_byte_for_byte(drawn, model, tmp_path):
    recipe = drawn / "color" / "recipe.json"
    found = recipes.load(recipe)
    expected = {"number": 2, "seed": 0, "guidance": 5.0, "top_k": 8, "temperature": 1.0, "size": [16, 16]}
    assert found["settings"] | expected == found["settings"]
    draw_benchmark(None, model, drawn.parent / "color_val.txt", tmp_path, recipe=recipe)
    assert content(tmp_path) == content(drawn)
    other = write_lines(tmp_path / "color_val.txt", *PROMPTS[:2])
    with pytest.raises(ValueError, match=r"recipe\.json is another run's:\n  data\.prompts\.bytes"):
        draw_benchmark(None, model, other, tmp_path / "b", recipe=recipe)
    with pytest.raises(ValueError, match=r"guidance 3\.0 was asked for, but .* says 5\.0"):
        draw_benchmark(None, model, other, tmp_path / "b", recipe=recipe, guidance=3.0)


def test_images_with_an_adapter_are_not_mixed_with_those_without(drawn, adapter):
    data, before = drawn.parent / "color_val.txt", content(drawn)
    with pytest.raises(ValueError, match=r"another run's:\n  model\.adapter\.lora\.alpha: None there, 6\.0"):
        draw_benchmark("T2I-CompBench++", None, data, drawn, adapter=adapter, **SETTINGS)
    assert content(drawn) == before


@pytest.mark.slow
def test_a_run_is_spread_over_devices(drawn, model, tmp_path):
    code = (
        "import sys, jax\njax.config.update('jax_num_cpu_devices', 2)\n"
        "from unitoken_jax.evaluate.drawing.run import draw_benchmark\n"
        "draw_benchmark('T2I-CompBench++', *sys.argv[1:], number=2, batch=2)"
    )
    argv = [str(model), str(drawn.parent / "color_val.txt"), str(tmp_path)]
    command, env = [sys.executable, "-c", code, *argv], os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    one, two = (recipes.load(folder / "color" / "recipe.json") for folder in (drawn, tmp_path))
    assert differences(one, two) == {"device.count": (1, 2)}
    for path in (drawn / "color" / "samples").iterdir():
        np.testing.assert_array_equal(pixels(path), pixels(tmp_path / "color" / "samples" / path.name))


def test_several_processes_are_refused(model, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="evaluation runs in one process, this run has 2"):
        load_model(model)


def test_geneval_keeps_metadata_where_another_prompt_is_drawn(model, tmp_path, capsys):
    data = write_lines(tmp_path / "m.jsonl", geneval_line("a bench"))
    rewritten = write_lines(tmp_path / "r.txt", "a red circle")
    argv = ["evaluate", "--model", str(model), "--benchmark", "GenEval", "--data", str(data)]
    argv += ["--out", str(tmp_path / "run"), "--rewritten", str(rewritten), "--number", "2", "--batch", "2"]
    assert main.main([*argv, "--debug"]) == 0
    assert "drawn from rewritten prompts" in capsys.readouterr().out
    run = tmp_path / "run"
    assert sorted(content(run)) == [
        "00000/metadata.jsonl",
        "00000/samples/00000.png",
        "00000/samples/00001.png",
        "prompts.jsonl",
        "recipe.json",
        "report.html",
        "report.md",
    ]
    drawn = {"prompt": "a red circle", "files": [f"00000/samples/0000{n}.png" for n in range(2)]}
    assert json.loads((run / "prompts.jsonl").read_text()) == drawn
    assert (run / "00000" / "metadata.jsonl").read_text() == geneval_line("a bench") + "\n"
    expected = tiny_model().image_results(["a red circle"], number=2, guidance=5.5)
    np.testing.assert_array_equal(pixels(run / "00000/samples/00001.png"), np.asarray(expected[1].image))
    found = recipes.load(run / "recipe.json")
    assert found["data"]["rewritten"]["file"] == "r.txt"
    assert found["settings"]["guidance"] == 5.5


def test_a_bad_prompt_is_named_before_the_weights_are_read(model, tmp_path, monkeypatch):
    monkeypatch.setattr(UniToken, "load", None)
    data = write_lines(tmp_path / "color_val.txt", "a book", "an <image> of <s>")
    with pytest.raises(PromptError, match=r"color_val\.txt:2: .*<image> in a text part"):
        draw_benchmark("T2I-CompBench++", model, data, tmp_path)


def test_a_control_tokens_name_in_a_prompt_is_text(model, tmp_path):
    check_prompts(
        model, T2I_COMPBENCH.read(write_lines(tmp_path / "color_val.txt", "a <s>", "<racm3:break>"))
    )


class Artist:
    """Draws a white image for each prompt, and notes what it was asked for."""

    def __init__(self):
        self.asked = []

    def image_results(self, texts, number, **settings):
        self.asked.append(list(texts))
        return [types.SimpleNamespace(image=Image.new("RGB", (8, 8), "white")) for _ in texts * number]


@pytest.mark.parametrize("damage", ["empty", "cut off", "zeros", "a text", "a folder"])
def test_an_image_that_does_not_open_is_drawn_again(tmp_path, damage):
    prompts = GENEVAL.read(
        write_lines(tmp_path / "m.jsonl", geneval_line("a bench"), geneval_line("a cup")), 2
    )
    settings, artist = {"number": 2, "batch": 2, "size": [8, 8]}, Artist()
    assert draw_missing(artist, prompts, tmp_path, tmp_path / ".part.png", settings) == 4
    whole, path = content(tmp_path), tmp_path / prompts[1].files[1]
    data = path.read_bytes()
    if damage == "a folder":
        path.unlink()
        path.mkdir()
        with pytest.raises(OSError, match=path.name):
            draw_missing(artist, prompts, tmp_path, tmp_path / ".part.png", settings)
        assert not (tmp_path / ".part.png").exists()
        return
    half = len(data) // 2
    left = {
        "empty": b"",
        "cut off": data[:-half],
        "zeros": data[:half] + bytes(len(data) - half),
        "a text": b"x",
    }
    path.write_bytes(left[damage])
    assert draw_missing(artist, prompts, tmp_path, tmp_path / ".part.png", settings) == 2
    assert artist.asked == [["a bench"], ["a cup"], ["a cup"]]
    assert content(tmp_path) == whole


def test_images_whose_recipe_is_damaged_are_not_mixed_with_others(tmp_path):
    (tmp_path / "recipe.json").write_text("")
    with pytest.raises(
        ValueError, match=r"recipe\.json is no recipe: .*: choose another --out, or remove it if"
    ):
        write_recipe(tmp_path / "recipe.json", {})


def test_a_full_disk_leaves_no_image_and_says_so(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space left while writing .*a\.png"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / ".part.png", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--benchmark", "GenEval", "--data", "d", "--max-tokens", "3"], "arguments: --max-tokens"),
        (["--benchmark", "MMMU", "--data", "d", "--seed", "0"], "arguments: --seed"),
        (["--benchmark", "MMMU", "--predictions", "p", "--batch", "2"], "arguments: --batch"),
        (["--benchmark", "MMMU", "--data", "d", "--batch", "0"], "argument --batch: '0'; expected a whole"),
        (["--scores", "s", "--data", "d"], "arguments: --data"),
        (["draw", "--benchmark", "GenEval", "--data", "d", "--template", "direct"], "arguments: --template"),
        (["--predictions", "p"], "required: --benchmark"),
    ],
)
def test_each_word_takes_only_its_own_options(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main.main(["evaluate", *argv, "--out", str(tmp_path), "--debug"])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--benchmark", "GenEval", "--predictions", "p"], "scored by its authors' own scorer"),
        (["--benchmark", "MMMU", "--model", "m"], "MMMU needs --data FILE"),
        (["--benchmark", "GenEval", "--model", "m"], "GenEval needs --data FILE"),
        (["--benchmark", "quickstart", "--model", "m"], "'quickstart' is called DrawScenes now"),
        (["--data", "d"], "which benchmark"),
        (["run", "--data", "d"], "which benchmark"),
        (["--data", "d", "--benchmark", "GenEvil", "--model", "m"], "Known: .* for images: GenEval"),
        (["run", "--data", "d", "--benchmark", "GenEval", "--model", "m"], "but of images to draw"),
        (["draw", "--data", "d", "--benchmark", "MMMU", "--model", "m"], "but of questions about images"),
    ],
)
def test_options_that_say_nothing_together(argv, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        main.main(["evaluate", *argv, "--out", str(tmp_path), "--debug"])


@pytest.mark.slow
def test_images_of_the_small_world_are_judged(tmp_path, model, monkeypatch):
    requirement = {"category": "single", "prompt": "a circle", "include": [{"kind": "circle"}]}
    data = write_lines(tmp_path / "p.jsonl", json.dumps(requirement))
    draw = UniToken.image_results
    smaller = lambda self, texts, **s: draw(self, texts, **s | {"size": (24, 24)})  # noqa: E731
    monkeypatch.setattr(UniToken, "image_results", smaller)
    lines = draw_benchmark("DrawScenes", model, data, tmp_path / "run")
    assert lines[1].startswith("DrawScenes (1 images): ")
    report = read_page(tmp_path / "run" / "report.html")
    assert report.text.count("a circle") >= 1
    assert [len(report.images), "not as asked" in report.text] == [2, True]  # once more as a failure
    argv = [
        "evaluate",
        "--benchmark",
        "DrawScenes",
        "--predictions",
        str(tmp_path / "run"),
        "--out",
        str(tmp_path / "again"),
    ]
    assert main.main([*argv, "--debug"]) == 0
    assert content(tmp_path / "again") == {"results.json": (tmp_path / "run" / "results.json").read_bytes()}
