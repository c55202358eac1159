"""The command line: one library call a verb, one clear message an error."""

import argparse
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import types

import pytest

import unitoken_jax
from unitoken_jax import pretrained
from unitoken_jax.cli import generate, main, options
from unitoken_jax.config_file import is_override, load_config


@pytest.fixture
def calls(monkeypatch):
    """Every library function the verbs call, replaced by one that notes its arguments."""
    noted = {}

    def module(name, **functions):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**functions))

    def note(verb, answer=None):
        def called(*arguments, **settings):
            noted[verb] = (arguments, settings)
            return answer

        return called

    module("unitoken_jax.quickstart.run", run=note("quickstart"))
    module("unitoken_jax.train.loop", train=note("train"))
    module("unitoken_jax.generate.tokenize", tokenize=note("tokenize", "codes.npz"))
    module("unitoken_jax.cli.doctor", run=note("doctor", 1))
    return noted


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two model directories, M and, without anything to draw with, R; an adapter A of M; a folder and a
    conversation file."""
    from tests.checkpoint.test_adapter import LORA, trained
    from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
    from unitoken_jax.checkpoint.adapter import Base, save_adapter
    from unitoken_jax.checkpoint.model_directory import save_model

    folder = tmp_path_factory.mktemp("models")
    params = tiny_params()
    save_model(folder / "M", CONFIG, params, tiny_tokenizer())
    reader = {name: params["vqgan"][name] for name in ("encoder", "quant_conv", "codebook")}
    save_model(folder / "R", CONFIG, params | {"vqgan": reader}, tiny_tokenizer())
    save_adapter(folder / "A", trained(), LORA, Base.of(folder / "M"))
    (folder / "F").mkdir()
    (folder / "c.jsonl").write_text(r'{"conversations": [{"from": "human", "value": "\ud83d"}]}')
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def test_quickstart(calls):
    assert main.main(["quickstart", "--out", "here", "--minutes", "2.5", "--seed", "3"]) == 0
    assert calls["quickstart"] == (("here", 2.5, 3, False), {})
    main.main(["quickstart", "--from-scratch"])
    assert calls["quickstart"] == (("quickstart", None, 0, True), {})


def test_a_tilde_that_the_shell_left_is_the_home_directory(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.py").write_text("def get_config():\n    return {}\n")
    assert main.main(["train", "--config=~/c.py", "--workdir=~/run"]) == 0
    assert calls["train"][0][1] == str(tmp_path / "run")
    assert main.main(["quickstart", "--out=~"]) == 0
    assert calls["quickstart"][0][0] == str(tmp_path)


def test_every_option_that_names_a_path_is_known_as_one():
    """So that `~` means the same in each."""
    path_words = re.compile(r"DIR|FILE|MODEL|DATA|PNG|JSON|NPZ", re.IGNORECASE)
    for parser in parsers(main.build_parser()):
        for action in parser._actions:
            if path_words.search(str(action.metavar)):
                assert action.dest in main.PATH_OPTIONS, action


def parsers(parser):
    """The parser of each verb and word below `parser`."""
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for inner in action.choices.values():
                yield from parsers(inner)


def test_train_reads_the_config_and_its_overrides(calls, tmp_path):
    path = tmp_path / "c.py"
    path.write_text("def get_config():\n    return {'train': {'steps': 5}}\n")
    assert main.main(["train", "--config", str(path), "--workdir", "run", "--config.train.seed=7"]) == 0
    (config, workdir), _ = calls["train"]
    assert (config.train.steps, config.train.seed, workdir) == (5, 7, "run")


def test_show_config_prints_a_config_file(tmp_path, capsys):
    path = tmp_path / "c.py"
    path.write_text("def get_config():\n    return {'train': {'steps': 5}}\n")
    argv = ["train", "--show-config", str(path), "--config.train.wandb=a\nb", "--profile", "3"]
    assert main.main(argv) == 0
    (tmp_path / "shown.py").write_text(capsys.readouterr().out)
    assert main.main(["train", "--show-config", f"{tmp_path}/shown.py"]) == 0
    shown = load_config(f"{tmp_path}/shown.py").train
    assert (shown.steps, shown.wandb, shown.profile_steps) == (5, "a\nb", 3)


def test_every_verb_has_two_examples_that_can_be_given():
    for parser in parsers(main.build_parser()):
        _, _, text = (parser.epilog or "").partition("examples:\n")
        assert max(map(len, text.splitlines()), default=0) <= 80, parser.prog
        examples = [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]
        assert len(examples) == 2 or parser.prog == "unitoken", parser.prog
        for words in examples:
            words = words[words.index("unitoken") :]
            words = words[: words.index(">")] if ">" in words else words
            overrides = [word for word in words if is_override(word)]
            plain = [word for word in words if not is_override(word)]
            assert " ".join(plain).startswith(parser.prog)
            arguments = main.build_parser().parse_args(plain[1:])
            if (config := vars(arguments).get("config")) and not config.endswith(".py"):
                load_config(config, overrides)


def test_help_says_what_every_option_is_for_and_what_it_is_otherwise():
    for parser in parsers(main.build_parser()):
        for action in parser._actions:
            if action.help == argparse.SUPPRESS or isinstance(action.choices, dict):
                continue
            assert action.help, (parser.prog, action.option_strings)
            assert not action.help.startswith("default"), (parser.prog, action.option_strings)
            if action.default not in (None, False, [], argparse.SUPPRESS):
                assert "default: " in action.help, (parser.prog, action.option_strings)


def test_profile_is_a_setting_of_the_run(calls, tmp_path):
    (tmp_path / "config.py").write_text("def get_config():\n    return {'train': {'steps': 7}}\n")
    argv = ["train", "--config", str(tmp_path / "config.py"), "--workdir", "run", "--profile", "3"]
    assert main.main(argv) == 0
    (config, _), _ = calls["train"]
    assert (config.train.steps, config.train.profile_steps) == (7, 3)


def test_tokenize(calls, capsys):
    assert main.main(["tokenize", "--model", "M", "--data", "D", "--out", "O"]) == 0
    assert calls["tokenize"] == (("M", "D", "O"), {})
    assert capsys.readouterr().out == "codes.npz\n"
    main.main(["tokenize", "--model", "M", "--data", "D", "--share", "1/4", "--images", "x/*.tar"])
    assert calls["tokenize"] == (("M", "D", None), {"share": (1, 4), "images": "x/*.tar"})
    for wrong in ("4/4", "1", "-1/2", "a/b"):
        with pytest.raises(SystemExit):
            main.main(["tokenize", "--data", "D", "--share", wrong])


def test_doctor_gives_its_exit_code(calls):
    assert main.main(["doctor"]) == 1


def test_errors_are_one_message_and_exit_2(calls, capsys):
    assert main.main(["train", "--config", "nowhere.py", "--workdir", "run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("unitoken train: config file nowhere.py does not exist")
    assert "Traceback" not in error


def test_debug_shows_the_error_itself(calls):
    with pytest.raises(FileNotFoundError):
        main.main(["train", "--config", "nowhere.py", "--workdir", "run", "--debug"])


def test_without_model_the_quickstarts_is_taken_or_else_the_packages(calls, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "FOLDER", package := tmp_path / "package")
    assert main.main(["tokenize", "--data", "D", "--out", "O"]) == 2
    assert "run `unitoken quickstart` in this folder first" in capsys.readouterr().err
    (package / "finished").mkdir(parents=True)
    (package / "finished" / "manifest.json").touch()
    assert main.main(["tokenize", "--data", "D", "--out", "O"]) == 0
    assert calls["tokenize"][0][0] == str(package / "finished")
    (tmp_path / "quickstart" / "model").mkdir(parents=True)
    assert main.main(["tokenize", "--data", "D", "--out", "O"]) == 0
    assert calls["tokenize"][0][0] == "quickstart/model"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["answer", "--question", "what?", "--config.train.steps=1"], "only `unitoken train`"),
        (["generate", "--prompt", "a", "--out", "a.png", "--size", "big"], "expected WIDTHxHEIGHT"),
        (["train", "--config", "c.py"], "--workdir"),
        (["draw"], "invalid choice"),
    ],
)
def test_usage_errors(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main.main(argv)
    assert message in capsys.readouterr().err


def test_image_names():
    assert [str(path) for path in generate.image_files("a.png", 1)] == ["a.png"]
    assert [str(path) for path in generate.image_files("a.png", 2)] == ["a-0.png", "a-1.png"]
    assert options.image_size("64x32") == (32, 64)


def test_help_needs_no_heavy_import():
    """`unitoken --help` must not wait for jax."""
    code = (
        "import sys; from unitoken_jax.cli.main import build_parser\n"
        "build_parser().format_help(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"jax", "numpy", "PIL", "orbax"} & set(done.stdout.split())


@pytest.mark.slow
def test_generate_and_answer_write_what_was_asked(models, tmp_path, monkeypatch, capsys):
    import numpy as np
    from PIL import Image

    from tests.helpers.tiny_model import noise, tiny_model

    monkeypatch.chdir(tmp_path)
    model = str(models / "M")
    common = ["--model", model, "--save-tokens", "t.json"]
    argv = ["generate", "--prompt", "a red circle", "--out", "a.png", "--number", "2", "--seed", "3"]
    assert main.main([*argv, "--size", "24x8", "--timing", "--progress", "--speculate", "0", *common]) == 0
    printed = capsys.readouterr()
    assert printed.out == "a-0.png\na-1.png\n"
    assert re.fullmatch(
        r"first token after .* s, then .* ms a pass \(11 passes, .* s\); compiling took .* s\n", printed.err
    )
    expected = tiny_model().image_results(["a red circle"], number=2, seed=3, size=(8, 24))
    saved = json.loads((tmp_path / "t.json").read_text())
    assert saved["tokens"] == [drawing.tokens.tolist() for drawing in expected]
    pixels = np.asarray(Image.open(tmp_path / "a-1.png"))
    np.testing.assert_array_equal(pixels, np.asarray(expected[1].image))

    noise(0).save(tmp_path / "b.png")
    assert main.main(["answer", "--image", "b.png", "--question", "what ?", *common]) == 0
    (reply,) = tiny_model().text_results([[noise(0), "what ?"]])
    assert capsys.readouterr().out == reply.text + "\n"
    assert json.loads((tmp_path / "t.json").read_text())["tokens"] == reply.tokens.tolist()
    assert main.main(["answer", "--image", "c.png", "--question", "what ?", "--model", model]) == 2
    assert "image c.png does not exist" in capsys.readouterr().err
    assert (
        main.main(["answer", "--image", "b.png", "--question", "what ?", "--model", model, "--stream"]) == 0
    )
    assert capsys.readouterr().out == reply.text + "\n"


@pytest.mark.slow
def test_chat_prints_text_and_files(models, tmp_path, monkeypatch, capsys):
    from tests.helpers.tiny_model import noise

    monkeypatch.chdir(tmp_path)
    noise(0).save("b.png")
    turns = [{"from": "human", "value": "<image>what ?"}, {"from": "gpt", "value": "a red <image>"}]
    asked = {"conversations": [*turns, {"from": "human", "value": "blue ?"}], "image": ["b.png", "b.png"]}
    (tmp_path / "c.jsonl").write_text(json.dumps(asked) + "\n")
    how = ["chat", "--model", str(models / "M"), "--draw", "--out", "a.png", "--max-tokens", "3"]
    assert main.main([*how, "--image", "b.png", "--question", "what ?"]) == 0
    assert capsys.readouterr().out.startswith("a-0.png\n")
    assert main.main([*how, "--conversation", "c.jsonl"]) == 0
    assert (tmp_path / "a-0.png").exists()
    for wrong in (how, [*how, "--question", "a", "--conversation", "c.jsonl"]):
        assert main.main(wrong) == 2
        assert "one of them" in capsys.readouterr().err


GENERATE = "generate --prompt a --out a.png "
ANSWER = "answer --question a "
CHAT = "chat --question a --out a.png "


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (GENERATE + "--seed -1", "--seed: '-1'; expected a whole number from 0 to 4294967295"),
        (GENERATE + "--seed 4294967296", "--seed: '4294967296'; expected"),
        (GENERATE + "--seed " + "1" * 5000, "1...'; expected a whole number"),
        (GENERATE + "--number 0", "--number: '0'; expected a whole number from 1"),
        (GENERATE + "--guidance nan", "--guidance: 'nan'; expected a number above 0"),
        (GENERATE + "--guidance 0", "--guidance: '0'; expected a number above 0"),
        (GENERATE + "--temperature inf", "--temperature: 'inf'; expected a number from 0"),
        (GENERATE + "--top-k 99", "top_k is 99; there are only 16 tokens"),
        (GENERATE + "--size 17x16", "17"),
        (GENERATE + "--size 0x16", "--size: '0x16'; expected WIDTHxHEIGHT"),
        (GENERATE + "--save-tokens nodir/x.json", "--save-tokens nodir/x.json: the folder nodir does not"),
        (GENERATE + "--save-tokens F", "--save-tokens F is a folder; expected a file"),
        (GENERATE + "--model R", "no vqgan/decoder parameters, which drawing images needs"),
        (GENERATE + "--model N", "no model directory at"),
        (GENERATE + "--adapter F", "no adapter at .*F: such a folder holds adapter.json"),
        (GENERATE + "--adapter A --model R", "A was trained on .*M .*R .*is another model: name the first"),
        (ANSWER + "--adapter F", "no adapter at"),
        (CHAT + "--adapter F", "no adapter at"),
        ("generate --prompt a --out a.xyz", "no image format is known by the ending '.xyz'"),
        ("generate --prompt a --out nodir/a.png", "--out nodir/a.png: the folder nodir does not exist"),
        ("generate --out a.png --prompt caf\udce9", r"prompt 0: the question has .*caf\udce9'"),
        (ANSWER + "--max-tokens 0", "--max-tokens: '0'; expected a whole number from 1"),
        (ANSWER + "--image no.png", "--question: image no.png does not exist"),
        (ANSWER + "--image broken.png", "--question: broken.png is not an image Pillow can open"),
        (ANSWER + "--save-tokens nodir/x.json", "the folder nodir does not exist"),
        ("answer --question caf\udce9?", r"--question: the question has 'caf\udce9', whose last"),
        (CHAT + "--seed -1", "--seed: '-1'"),
        (CHAT + "--image data:,", '"image" holds a URL, data:,'),
        (CHAT + "--draw --model R", "no vqgan/decoder parameters"),
        ("chat --out a.png --question \ud83d", r"--question: the question has '\ud83d'"),
        ("chat --out a.png --conversation c.jsonl", r"c.jsonl:1: the question has '\ud83d'"),
        ("chat --out a.png", "give --question TEXT or --conversation FILE"),
        ("score --data c.jsonl --out nodir/a.jsonl", "--out nodir/a.jsonl: the folder nodir does not exist"),
        ("score --data none.jsonl --out a.jsonl", "none.jsonl"),
        ("score --data c.jsonl --out F", "--out F is a folder; expected a file"),
        ("tokenize --data none.jsonl", "none.jsonl"),
        (
            "tokenize --data c.jsonl --out broken.png/codes",
            "--out broken.png/codes: .*png is no folder",
        ),
        ("evaluate run --benchmark MMMU --data x.tsv --out broken.png/a/b", "broken.png is no folder"),
    ],
)
def test_what_a_verb_needs_is_checked_before_the_model_loads(command, message, models, monkeypatch, capsys):
    from unitoken_jax.unitoken import UniToken

    monkeypatch.chdir(models)
    monkeypatch.setattr(UniToken, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    model = [] if "--model" in command else ["--model", "M"]
    try:
        code = main.main([*command.split(" "), *model])
    except SystemExit as usage:
        code = usage.code
    error = capsys.readouterr().err
    assert code == 2
    assert re.search(message.replace("\\", r"\\"), error), error
    assert error.replace("\n", "").isprintable()


@pytest.mark.parametrize("command", [GENERATE, ANSWER, CHAT, "score --data c.jsonl --out s.jsonl "])
def test_an_adapter_is_loaded_on_its_own_base_or_the_one_that_is_named(command, models, monkeypatch):
    from unitoken_jax.unitoken import UniToken

    loaded, outlined, outline = [], [], UniToken.outline

    def load(path, adapter=None, quantize=None):
        loaded.append((path, adapter, quantize))
        raise ValueError("as far as this test goes")

    monkeypatch.chdir(models)
    monkeypatch.setattr(UniToken, "load", load)
    monkeypatch.setattr(UniToken, "outline", lambda *asked: outlined.append(asked) or outline(*asked))
    argv = [*command.split(), "--adapter", "A"]
    assert main.main(argv) == main.main([*argv, "--model", "M"]) == 2
    assert loaded == [(None, "A", None), ("M", "A", None)]
    assert outlined == ([] if command.startswith("score") else [(None, "A"), ("M", "A")])


def test_where_images_stand_in_a_question():
    def parts(text, images):
        (turn,) = generate.question_of(text, images).turns
        return [part if isinstance(part, str) else part.name for part in turn.parts]

    assert parts("what ?", ["a.png", "b.png"]) == ["a.png", "b.png", "what ?"]
    assert parts("is <|image|> as <image> ?", ["a.png", "b.png"]) == ["is ", "a.png", " as ", "b.png", " ?"]
    with pytest.raises(ValueError, match=r"--question: 1 <\|image\|> in the turns but 2 images"):
        parts("<|image|> ?", ["a.png", "b.png"])


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main.main(["--version"])
    assert capsys.readouterr().out == f"unitoken {unitoken_jax.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tokenize", "--data", "D", "--pictures", "P"], "--pictures is called --images now"),
        (["inspect", "D", "--pictures=P"], "--pictures is called --images now"),
        (["convert", "--picture-size", "64"], "--picture-size is called --image-size now"),
    ],
)
def test_a_renamed_option_is_named(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main.main(argv)
    assert message in capsys.readouterr().err


def test_image_sizes():
    parse = main.build_parser().parse_args
    convert = ["convert", "--checkpoint", "C", "--out", "O", "--image-size"]
    assert parse([*convert, "64"]).image_size == 64
    assert parse([*convert, "96x64"]).image_size == (64, 96)


@pytest.mark.parametrize(
    "command",
    [
        "quickstart --out",
        "tokenize --data D --out",
        "convert --checkpoint D --out",
        "plan --config C --json",
        "answer --question Q --save-tokens",
    ],
)
def test_only_train_writes_to_a_url(command, calls, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main([*command.split(), "gs://bucket/x"]) == 2
    assert f"{command.split()[-1]} gs://bucket/x is a URL; expected a path" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    assert not calls


def printing(text, **settings):
    """Exit code, output and errors of `unitoken doctor`, in a process of its own, where it prints `text`."""
    code = f"from unitoken_jax.cli import doctor, main; doctor.run = lambda: print({text!r}) or 0; "
    command = [sys.executable, "-c", code + "raise SystemExit(main.main())", "doctor"]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | settings
    done = subprocess.run(command, **settings)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("size", [1, 10**5])
def test_a_reader_that_goes_away_is_no_error(size):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        assert printing("x" * size, stdout=pipe) == (128 + signal.SIGPIPE, None, "")


def test_a_full_disk_is_one():
    with open("/dev/full", "w") as full:
        code, _, error = printing("x", stdout=full)
    assert (code, "No space left" in error) == (2, True)


def test_a_name_that_the_terminal_cannot_show_is_escaped():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert printing("röt \udce9", env=environment) == (0, "r\\xf6t \\udce9\n", "")


def test_a_fault_of_ours_is_one_line_and_a_file(calls, monkeypatch, capsys):
    def fail():
        raise KeyError("a")

    monkeypatch.setattr(sys.modules["unitoken_jax.cli.doctor"], "run", fail)
    assert main.main(["doctor"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("unitoken doctor: failed unexpectedly (KeyError: 'a')\n")
    report = pathlib.Path(error.split()[-1])
    assert "in fail" in report.read_text()
    report.unlink()
    with pytest.raises(KeyError):
        main.main(["doctor", "--debug"])


def test_ctrl_c_is_one_line(calls, monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["unitoken_jax.cli.doctor"], "run", interrupt)
    assert main.main(["doctor"]) == 130
    assert capsys.readouterr().err == "unitoken doctor: stopped\n"


def test_finetune(monkeypatch, tmp_path):
    from unitoken_jax.finetune import FinetuneOptions, run

    called = []
    monkeypatch.setattr(run, "finetune", lambda *arguments, **settings: called.append((arguments, settings)))
    out = str(tmp_path / "tuned")
    argv = ["finetune", "--model", "M", "--data", "a.jsonl", "--data", "~/b", "--out", out]
    more = ["--lora-on", "decoder, head", "--train", "norms", "--epochs", "2", "--rank", "4"]
    more += ["--held-out", "0"]
    assert main.main([*argv, *more, "--dry-run", "--config.train.keep=3"]) == 0
    ((options, folder), settings) = called[0]
    assert options == FinetuneOptions(
        ("a.jsonl", os.path.expanduser("~/b")),
        "M",
        lora_on=("decoder", "head"),
        train=("norms",),
        epochs=2.0,
        rank=4,
        held_out=0.0,
    )
    assert folder == out
    assert settings == {"overrides": ["--config.train.keep=3"], "dry_run": True}
    with pytest.raises(SystemExit):
        main.main([*argv, "--epochs", "2", "--steps", "3"])
