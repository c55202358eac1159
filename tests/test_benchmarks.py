"""The benchmarks that have a small form run."""

import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys

import pytest
from PIL import Image

from tests.helpers.tiny_model import CONFIG, tiny_model, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import save_model

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


def load(name: str):
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parity
@pytest.mark.slow
def test_all_sides_of_generate_vs_transformers_choose_the_same_ids(capsys):
    """Slow, since it compiles four ways to decode."""
    pytest.importorskip("transformers.models.chameleon", reason="needs the parity extra")
    load("generate_vs_transformers").main(["--small", "--speculate", "3", "--quantize", "int8"])
    printed = capsys.readouterr().out
    assert printed.count("the first 22 of 22 ids are ours") == 2
    assert "speculation: 22 of 22 ids are plain decoding's" in printed


@pytest.mark.slow
def test_gpu_train_measures_both_stages(tmp_path):
    """Slow, since the script measures each stage in a process of its own."""
    environment = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    command = [BENCHMARKS / "gpu_train.sh", "--small", "--steps", "2", "--out", tmp_path / "out.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stages = json.loads((tmp_path / "out.json").read_text())
    assert [(stage["stage"], stage["depth"], stage["extrapolated"]) for stage in stages] == [
        (1, 4, False),
        (2, 4, False),
    ]
    assert all(stage["tokens_per_second"] > 0 for stage in stages)
    assert 0.5 < stages[0]["flops"] / stages[1]["flops"] < 0.8
    assert "a sample in stage 1 takes" in done.stdout


def test_gpu_train_goes_on_by_the_layer_where_not_all_fit():
    gpu_train = load("gpu_train")
    same = {"stage": 2, "tokens": 100, "samples": 2, "peak_flops": 1e3, "device": "x"}
    found = [
        same | {"depth": 16, "step_seconds": 2.0, "flops": 1000.0},
        same | {"depth": 8, "step_seconds": 1.2, "flops": 520.0},
    ]
    whole = gpu_train.at_depth(found, 32)
    assert whole["extrapolated"]
    assert whole["step_seconds"] == pytest.approx(2.0 + 16 * 0.1)
    assert whole["mfu"] == pytest.approx((1000 + 16 * 60) / 3.6 / 1e3)
    assert gpu_train.at_depth(found[:1], 32)["depth"] == 16
    plan = gpu_train.Plan(2, 32, "full", 2, 8, "auto", False, False)
    assert 100e9 < plan.needs() < 125e9  # an H200 has 141
    assert gpu_train.row_layout(gpu_train.configs.ModelConfig())["length"] == 5120


WITHOUT = "grain tensorflow_datasets ml_collections transformers torch orbax optax PIL tokenizers safetensors"


@pytest.mark.slow
def test_gpu_generate_draws_with_nothing_but_jax_flax_and_numpy(tmp_path):
    """Slow, since the script makes each measurement in a process of its own."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {WITHOUT.split()}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    environment = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path)}
    out, script = tmp_path / "out.json", BENCHMARKS / "gpu_generate.sh"
    command = [script, "--small", "--only", "int4,window16,batch-bf16", "--images", "3", "--out", out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, window, batch = json.loads(out.read_text())
    assert plain["passes"] == 15  # of 16 codes the prompt's pass gives the first
    assert 1 <= window["passes"] <= 15
    assert (batch["images"], [run["passes"] for run in batch["runs"]]) == (3, [3, 3, 3])
    assert batch["images_per_second"] == pytest.approx(3 / batch["batch_seconds"])
    assert "by arithmetic, not measured" in done.stdout


def test_gpu_generate_counts_the_7b_models_bytes():
    gpu_generate, timing = load("gpu_generate"), load("decode_timing")
    config = gpu_generate.configs.ModelConfig().decoder
    layers, head = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 8192 * 4096 * 2
    assert timing.weight_bytes(config, "bfloat16", 8192) == 2 * layers + head == 13_019_119_616
    outputs = 32 * (5 * 4096 + 2 * 11008)  # a float32 scale each
    assert timing.weight_bytes(config, "int8", 8192) == layers + 4 * outputs + head
    assert timing.weight_bytes(config, "int4", 8192) == layers / 2 + 4 * layers / 128 + head
    assert timing.token_bytes(config, "bfloat16") == 524_288
    assert timing.token_bytes(config, "int8") == 2 * 32 * 32 * (128 + 4)
    shape = gpu_generate.geometry(gpu_generate.configs.ModelConfig())
    assert shape == {"codes": 1024, "columns": 32, "drawn": 1056, "slots": 1120}


def test_gpu_generate_finds_the_largest_batch_by_arithmetic():
    gpu_generate = load("gpu_generate")
    plain, whole = gpu_generate.Plan(), gpu_generate.Plan(weights="int8")
    # (134 - 18.03) GB / 1.229 GB, and (134 - 11.56) / 0.697: cache, scores of the prompts, and what is fixed.
    assert (gpu_generate.largest(plain, 134e9), gpu_generate.largest(whole, 134e9)) == (94, 175)
    assert gpu_generate.needs(plain, 94) <= 134e9 < gpu_generate.needs(plain, 95)
    assert gpu_generate.largest(plain, 10e9) == 0


def test_gpu_generate_makes_a_batch_that_does_not_fit_smaller(monkeypatch):
    gpu_generate, tried = load("gpu_generate"), []

    def attempt(name, plan, until):
        tried.append(plan.images)
        return {"images": plan.images} if plan.images <= 50 else None

    monkeypatch.setattr(gpu_generate, "attempt", attempt)
    plan, later = gpu_generate.MEASUREMENTS["batch-bf16"], float("inf")
    assert gpu_generate.measured("batch-bf16", plan, 134e9, later, later) == {"images": 39}
    assert tried == [94, 70, 52, 39]
    assert gpu_generate.measured("batch-bf16", plan, 134e9, 0, later) is None  # no time is left


def test_gpu_generate_names_what_it_can_measure(capsys):
    with pytest.raises(SystemExit):
        load("gpu_generate").main(["--only", "bf16,fp8"])
    assert "--only names fp8; expected some of bf16, int8" in capsys.readouterr().err


@pytest.mark.slow
def test_decode_speed_goes_on_after_the_last_point_and_draws(tmp_path, capsys):
    decode_speed, out = load("decode_speed"), tmp_path / "out.json"
    command = ["--small", "--weights", "float32", "--out", str(out), "--png", str(tmp_path / "docs/out.png")]
    assert decode_speed.main(command) == 0
    assert capsys.readouterr().out.count("tokens/s") == 4  # the first point is in all three panels
    results = json.loads(out.read_text())
    results["points"].pop()
    out.write_text(json.dumps(results))
    assert decode_speed.main(command) == 0
    assert capsys.readouterr().out.count("tokens/s") == 1
    assert (tmp_path / "docs/out.png").read_bytes().startswith(b"\x89PNG")
    out.write_text(json.dumps({"machine": {"device": "another"}, "points": []}))
    with pytest.raises(SystemExit):
        decode_speed.main(command)
    assert "name another file" in capsys.readouterr().err


@pytest.mark.parity
@pytest.mark.slow
def test_step_vs_torch_takes_the_same_steps_on_all_sides(capsys):
    pytest.importorskip("transformers.models.chameleon", reason="needs the parity extra")
    load("step_vs_torch").main(["--small", "--repeats", "1"])  # it raises where losses differ
    assert capsys.readouterr().out.count("losses of 2 steps, ours and") == 2


def test_quantize_measures_up_to_loading(tmp_path, capsys):
    quantize, folder = load("quantize"), tmp_path / "F"
    quantize.main([str(folder), "--small", "--before", "--until", "load"])
    steps = json.loads((folder / "figures.json").read_text())["steps"]
    names = ["make", "convert", "quantize", "load the original", "start", "load"]
    assert list(steps) == names
    said = [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [name for name in said if name in names] == names
    assert all(step["seconds"] > 0 and step["peak"] > 0.1 for step in steps.values())
    assert steps["quantize"]["GB"] < steps["convert"]["GB"]
    assert sorted(path.name for path in folder.iterdir()) == ["figures.json", "model8"]
    with pytest.raises(SystemExit, match=r"figures\.json is of .*'bits': 8.*: name another folder"):
        quantize.main([str(folder), "--small", "--bits", "4"])
    with pytest.raises(SystemExit):
        quantize.main([str(folder), "--small", "--until", "sing"])
    assert "--until is sing; expected one of make, convert, quantize, start, load" in capsys.readouterr().err


@pytest.mark.slow
def test_quantize_goes_from_a_checkpoint_to_a_row_of_codes(tmp_path):
    """Slow, since it compiles how to answer and how to draw."""
    load("quantize").main([str(tmp_path / "F"), "--small"])
    steps = json.loads((tmp_path / "F" / "figures.json").read_text())["steps"]
    assert 1 <= steps["answer"]["tokens"] <= 8
    assert (steps["draw"]["codes"], steps["draw"]["passes"]) == (4, 3)  # the prompt's pass gives the first
    assert all(steps[name]["compiling"] > 0 and steps[name]["prefill"] > 0 for name in ("answer", "draw"))
    assert [path.name for path in (tmp_path / "F").iterdir()] == ["figures.json"]


def test_quantize_keeps_what_an_interrupted_step_had_said(tmp_path, capsys):
    quantize = load("quantize")
    model = {"bits": 8}
    first = quantize.Figures(tmp_path / "figures.json", model)

    def killed(record):
        record({"load": 2.0})
        raise KeyboardInterrupt

    first.measure("start", lambda record: record({"devices": 1}), None)
    with pytest.raises(KeyboardInterrupt):
        first.measure("draw", killed, None)
    again, called = quantize.Figures(tmp_path / "figures.json", model), []
    assert again.written["steps"]["draw"] == {"load": 2.0}
    for name in ("start", "draw"):
        again.measure(name, lambda record, name=name: called.append(name), None)
    assert called == ["draw"]
    assert again.written["steps"]["start"]["devices"] == 1


def test_plain_drawings_show_what_they_say():
    plain = load("plain_drawings")
    rng, seen = random.Random(0), set()
    for _ in range(60):
        drawing = plain.draw(rng)
        image = drawing.image.convert("RGB")
        assert 200 <= min(image.size) <= max(image.size) <= 900
        ground = image.getpixel((0, 0))
        near = [max(map(abs, map(int.__sub__, ground, rgb))) < 12 for rgb in plain.GROUNDS[drawing.ground]]
        assert any(near)
        inks = [pixel for _, pixel in sorted(image.resize((60, 60), 0).getcolors(3600), reverse=True)[:12]]
        assert any(
            max(map(abs, map(int.__sub__, ink, rgb))) < 16
            for ink in inks
            for rgb in plain.COLOURS[drawing.colour]
        )
        seen |= {drawing.shape, drawing.colour, drawing.ground, drawing.format}
    assert seen == {*plain.SHAPES, *plain.COLOURS, *plain.GROUNDS, "as drawn", "JPEG"}
    again = plain.draw(random.Random(7)).image
    assert again.tobytes() == plain.draw(random.Random(7)).image.tobytes()


def test_plain_drawings_count_words(tmp_path, capsys):
    plain, asked = load("plain_drawings"), []

    def answer(conversations):
        asked.extend(question for _, question in conversations)
        says = {"what shape is this?": "circle", "what colour is the shape?": "Red."}
        return [says.get(question, "a red circle centre") for _, question in conversations]

    assert plain.main(["--number", "40", "--seed", "3", "--out", str(tmp_path / "out")], answer) == 0
    rng = random.Random(3)
    drawings = [plain.draw(rng) for _ in range(40)]
    both = sum((drawing.shape, drawing.colour) == ("circle", "red") for drawing in drawings)
    circles = sum(drawing.shape == "circle" for drawing in drawings)
    reds = sum(drawing.colour == "red" for drawing in drawings)
    printed = capsys.readouterr().out
    shares = [f"{count / 40:.3f}" for count in (both, both, circles, reds)]
    assert f"| all | 40 | {' | '.join(shares)} |" in printed
    assert f"| shape: circle | {circles} |" in printed
    assert f"{40 - both} failures" in printed
    assert (tmp_path / "out" / "failures.png").read_bytes().startswith(b"\x89PNG")
    assert len(asked) == 120
    assert not plain.names_only("a red circle and a blue circle", "red", plain.COLOURS)
    assert plain.names_only("Red.", "red", plain.COLOURS)


def test_plain_drawings_ask_about_photographs(tmp_path, capsys, monkeypatch):
    plain = load("plain_drawings")
    image = Image.new("RGB", (40, 30))
    monkeypatch.setattr(plain, "photographs", lambda rng: [(f"p{i}", image) for i in range(6)])
    answers = ["nothing that I know", "a red circle centre", "nothing that i know.", *["a 7 centre"] * 3]
    assert plain.main(["--photographs", "--out", str(tmp_path)], lambda conversations: answers) == 0
    printed = capsys.readouterr().out
    assert "is said of 1 of 2 photographs" in printed
    assert "of 2 of 6 with parts of them: 0.333" in printed
    assert "4 failures" in printed


@pytest.mark.slow
def test_first_minute_measures_every_call(tmp_path, capsys):
    """Slow, since every call is a process of its own, and the first ones compile."""
    save_model(tmp_path / "M", CONFIG, tiny_params(), tiny_tokenizer())
    load("first_minute").main(["--model", str(tmp_path / "M"), "--rounds", "1"])
    assert [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:]] == [
        *("--help", "generate", "answer", "UniToken.load, generate")
    ]


@pytest.mark.slow
def test_serve_measures_text_and_images():
    """Slow, since the engine compiles its programs, and so do the offline calls."""
    found = load("serve").measure(tiny_model(), rounds=1, answer_tokens=8)
    for kind in ("text", "images"):
        assert found[kind]["requests"] == 16
        assert found[kind]["of_offline"] > 0
        assert found[kind]["first_token_ratio"] > 0
