"""Fine-tuning from a user's files: what is chosen, refused, left behind and repeated."""

import dataclasses
import json

import numpy as np
import pytest

from tests.helpers.tiny_model import CONFIG, noise, tiny_params, tiny_tokenizer
from unitoken_jax import UniToken
from unitoken_jax.checkpoint.adapter import load_adapter
from unitoken_jax.checkpoint.model_directory import load_model, save_model
from unitoken_jax.config_file import load_config
from unitoken_jax.data.codes import read_codes
from unitoken_jax.finetune import FinetuneOptions
from unitoken_jax.finetune.choose import choose
from unitoken_jax.finetune.run import finetune
from unitoken_jax.sequence.conversation_file import read_conversations
from unitoken_jax.train.loop import train


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "model"
    save_model(path, CONFIG, tiny_params(), tiny_tokenizer())
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images, with captions of two kinds, as a user would have them."""
    folder = tmp_path_factory.mktemp("photos")
    lines = ["file_name,text"]
    for i in range(12):
        noise(i).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{'a red circle' if i % 2 else 'two blue squares'}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def options(photos, model, **more) -> FinetuneOptions:
    return FinetuneOptions((str(photos),), str(model), **{"rank": 2, "rehearsal": 2, "steps": 4} | more)


@pytest.fixture(scope="module")
def chosen(photos, model, tmp_path_factory):
    """What is chosen where only data and model are named."""
    out = tmp_path_factory.mktemp("chosen") / "tuned"
    return choose(FinetuneOptions((str(photos),), str(model)), out), out


def test_what_is_left_out_is_chosen_from_the_data(chosen, photos):
    choices, out = chosen
    config = choices.config
    training, rehearsal = config.data.sources
    validation, held_out_rehearsal = config.data.validation
    assert training.path == validation.path == str(photos / "captions.csv")
    assert (training.part, validation.part) == ("training", "held_out")
    assert training.held_out == validation.held_out > 0
    assert rehearsal.path == str(out / "rehearsal" / "rehearsal.jsonl")
    assert held_out_rehearsal.path == str(out / "rehearsal" / "held_out.jsonl")
    assert config.data.codes == "offline"
    assert config.data.row_length % 64 == 0
    assert config.lora.rank == 16
    assert config.lora.scale == 2.0
    assert (config.train.keep_best, config.train.frozen_dtype) == (True, "stored")
    assert 0 < config.train.validate_every < config.train.steps
    assert {line.name for line in choices.lines} >= {"data", "held out", "batch", "steps", "learning rate"}
    assert all(line.options.startswith("--") for line in choices.lines)
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "overrides", "expected"),
    [
        ({"full": True}, (), {"lora.rank": 0, "train.steps": 4}),
        ({"rank": 3, "alpha": 1.5, "rslora": True}, (), {"lora.rank": 3, "lora.alpha": 1.5}),
        ({"learning_rate": 0.5}, (), {"optimizer.groups.0.learning_rate": 0.5}),
        ({"rehearsal": 0}, ("--config.train.save_every=7",), {"train.save_every": 7}),
        ({"frozen_dtype": "bfloat16", "train": ("norms",)}, (), {"train.frozen_dtype": "bfloat16"}),
        ({"lora_on": ("siglip", "adapter")}, (), {"lora.targets": "^(siglip/layers/|adapter/)"}),
    ],
)
def test_what_is_said_counts(photos, model, tmp_path, monkeypatch, settings, overrides, expected):
    monkeypatch.setattr("unitoken_jax.finetune.choose._fit", lambda config, *_: (config, None))
    config = choose(options(photos, model, **settings), tmp_path, overrides).config
    for key, value in expected.items():
        found = config
        for name in key.split("."):
            found = found[int(name)] if name.isdigit() else getattr(found, name)
        assert found == value


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"lora_on": ("decoder", "vqgan")}, "--lora-on vqgan: no such network"),
        ({"train": ("head",)}, "--train head: no such network"),
        ({"full": True, "train": ("norms",)}, "--full trains everything"),
        ({"steps": 4, "epochs": 2.0}, "give one of them"),
        ({"data": ()}, "--data: name at least one"),
    ],
)
def test_options_that_cannot_be(photos, model, settings, problem):
    with pytest.raises(ValueError, match=problem):
        dataclasses.replace(options(photos, model), **settings)


def test_bad_rows_and_missing_data_are_named_before_anything_is_written(photos, model, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "captions.csv").write_text("file_name,text\nno.png,a red circle\n")
    with pytest.raises(ValueError, match=r"captions.csv:2"):
        finetune(options(folder, model), tmp_path / "tuned")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        finetune(options(tmp_path / "nowhere", model), tmp_path / "tuned")
    with pytest.raises(ValueError, match="finds no kernel that can have a LoRA pair"):
        finetune(
            options(photos, model), tmp_path / "tuned", overrides=["--config.lora.targets=^adapter/nothing"]
        )
    assert not (tmp_path / "tuned").exists()


@pytest.fixture(scope="module")
def tuned(photos, model, tmp_path_factory):
    """(options, directory, summary, what was said) of a whole run."""
    out, said = tmp_path_factory.mktemp("finetune") / "tuned", []
    asked = options(photos, model)
    return asked, out, finetune(asked, out, say=said.append), said


def test_a_run_leaves_adapter_report_and_config(tuned, model):
    _, out, summary, said = tuned
    adapter = load_adapter(out)
    assert adapter.base.path == str(model)
    assert adapter.manifest["step"] == summary["best_step"]
    for name in ("before_after.png", "report.html", "loss_curves.png", "config.py", "samples"):
        assert (out / name).exists(), name
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["held_out_questions"] > 0
    text = "\n".join(said)
    assert f"unitoken answer --adapter {out}" in text
    assert "--held-out" in text
    rehearsal = list(read_conversations(out / "rehearsal" / "rehearsal.jsonl"))
    questions = [conversation.turns[0].parts for conversation in rehearsal]
    assert sum(not all(isinstance(part, str) for part in parts) for parts in questions) == 2 * 3
    assert UniToken.load(adapter=out).answer([[noise(3), "what is this ?"]])


def test_the_same_call_goes_on_and_another_is_refused(tuned):
    asked, out, summary, _ = tuned
    again = finetune(asked, out, say=lambda line: None)
    assert again["best_held_out"] == summary["best_held_out"]
    with pytest.raises(ValueError, match=r"another fine-tuning:\n  rank: 2 there, 3 here"):
        finetune(dataclasses.replace(asked, rank=3), out)
    with pytest.raises(ValueError, match="holds no fine-tuning"):
        finetune(asked, out.parent)


def test_its_config_file_repeats_the_run_bit_for_bit(tuned, tmp_path):
    _, out, _, _ = tuned
    state = train(load_config(str(out / "config.py")), tmp_path / "run", progress=None)
    theirs = load_adapter(out / "adapters" / f"step_{int(state.step):07d}").params
    assert set(state.params) == set(theirs)
    for path, value in state.params.items():
        np.testing.assert_array_equal(value, theirs[path])


def test_a_dry_run_writes_nothing(photos, model, tmp_path):
    said = []
    assert finetune(options(photos, model), tmp_path / "tuned", dry_run=True, say=said.append) == {}
    assert any("GiB" in line for line in said)
    assert any("about 0:" in line for line in said)
    assert not (tmp_path / "tuned").exists()


def test_in_full_it_leaves_a_model_directory(photos, model, tmp_path):
    finetune(options(photos, model, full=True, rehearsal=0, steps=2), tmp_path / "tuned", say=lambda _: None)
    before, after = load_model(model), load_model(tmp_path / "tuned" / "model")
    kernels = [loaded.params["decoder"]["layers"]["mlp"]["up"]["kernel"] for loaded in (before, after)]
    assert not np.array_equal(*kernels)


@pytest.mark.slow
def test_eight_rows_are_learnt_by_heart(model, tmp_path):
    """Slow, since it takes some hundred steps until every answer and every code is the data's."""
    answers = ["a red circle", "two blue squares", "green", "three"]
    lines = ["file_name,text,question,answer"]
    for i, text in enumerate(answers):
        noise(20 + i, 16, 16).save(tmp_path / f"{i}.png")
        lines.append(f'{i}.png,"{["one", "two", "three", "how"][i]} {text}",what is this ?,{text}')
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    asked = options(
        tmp_path, model, captions="draw", held_out=0.0, rehearsal=0, steps=300, learning_rate=1e-2, rank=16
    )
    finetune(asked, tmp_path / "tuned", say=lambda line: None)
    tuned = UniToken.load(adapter=tmp_path / "tuned")
    images = [tmp_path / f"{i}.png" for i in range(4)]
    assert tuned.answer([[image, "what is this ?"] for image in images]) == answers
    prompts = [f"{word} {text}" for word, text in zip(("one", "two", "three", "how"), answers)]
    drawn = tuned.image_results(prompts, guidance=1.0, top_k=1)
    codes = read_codes(tmp_path / "tuned" / "codes" / "captions.csv.codes", tuned.config)
    code_of = {token: code for code, token in enumerate(tuned.tokenizer.vocabulary.code_ids.tolist())}
    for i, result in enumerate(drawn):
        expected = next(value for name, value in codes.items() if name.endswith(f"{i}.png"))
        found = [code_of[token] for token in result.tokens.tolist() if token in code_of]
        assert found == expected.ravel().tolist(), prompts[i]
