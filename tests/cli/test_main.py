"""The command line: one library call a verb, one clear message an error."""

import json
import re
import subprocess
import sys
import types

import pytest

import unitoken_jax
from unitoken_jax.cli import generate, main, options


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


def test_quickstart(calls):
    assert main.main(["quickstart", "--out", "here", "--minutes", "2.5", "--seed", "3"]) == 0
    assert calls["quickstart"] == (("here",), {"minutes": 2.5, "seed": 3})
    main.main(["quickstart"])
    assert calls["quickstart"] == (("quickstart",), {"minutes": 15, "seed": 0})


def test_a_tilde_that_the_shell_left_is_the_home_directory(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.py").write_text("def get_config():\n    return {}\n")
    assert main.main(["train", "--config=~/c.py", "--workdir=~/run"]) == 0
    assert calls["train"][0][1] == str(tmp_path / "run")
    assert main.main(["quickstart", "--out=~"]) == 0
    assert calls["quickstart"][0] == (str(tmp_path),)


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


def test_without_model_the_quickstarts_is_taken(calls, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(["tokenize", "--data", "D", "--out", "O"]) == 2
    assert "run `unitoken quickstart` in this folder first" in capsys.readouterr().err
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


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out", "a.xyz"], "no image format is known by the ending '.xyz'"),
        (["--out", "no/such/folder/a.png"], "folder no/such/folder does not exist"),
        (["--out", "a.png", "--number", "0"], "--number is 0"),
        (["--out", "a.png", "--model", "nowhere"], "no model directory at"),
    ],
)
def test_generate_checks_before_it_draws(argv, message, capsys):
    assert main.main(["generate", "--prompt", "a", *argv]) == 2
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
def test_generate_and_answer_write_what_was_asked(tmp_path, monkeypatch, capsys):
    import numpy as np
    from PIL import Image

    from tests.helpers.tiny_model import noise, tiny_model
    from unitoken_jax.unitoken import UniToken

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(UniToken, "load", lambda path, quantize: tiny_model())
    common = ["--model", "M", "--save-tokens", "t.json"]
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
    assert main.main(["answer", "--image", "c.png", "--question", "what ?", "--model", "M"]) == 2
    assert "image c.png does not exist" in capsys.readouterr().err
    assert main.main(["answer", "--image", "b.png", "--question", "what ?", "--model", "M", "--stream"]) == 0
    assert capsys.readouterr().out == reply.text + "\n"


@pytest.mark.slow
def test_chat_prints_text_and_files(tmp_path, monkeypatch, capsys):
    from tests.helpers.tiny_model import noise, tiny_model
    from unitoken_jax.unitoken import UniToken

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(UniToken, "load", lambda path, quantize: tiny_model())
    noise(0).save("b.png")
    turns = [{"from": "human", "value": "<image>what ?"}, {"from": "gpt", "value": "a red <image>"}]
    asked = {"conversations": [*turns, {"from": "human", "value": "blue ?"}], "image": ["b.png", "b.png"]}
    (tmp_path / "c.jsonl").write_text(json.dumps(asked) + "\n")
    how = ["chat", "--model", "M", "--draw", "--out", "a.png", "--max-tokens", "3"]
    assert main.main([*how, "--image", "b.png", "--question", "what ?"]) == 0
    assert capsys.readouterr().out.startswith("a-0.png\n")
    assert main.main([*how, "--conversation", "c.jsonl"]) == 0
    assert (tmp_path / "a-0.png").exists()
    for wrong in (how, [*how, "--question", "a", "--conversation", "c.jsonl"]):
        assert main.main(wrong) == 2
        assert "one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["generate", "--out", "a.png", "--prompt", "caf\udce9"], r"--prompt: the question has .*caf\udce9'"),
        (
            ["answer", "--question", "caf\udce9?"],
            r"--question: the question has 'caf\udce9', whose last",
        ),
        (["answer", "--question", "what ?", "--image", "no.png"], "--question: image no.png does not exist"),
        (["chat", "--out", "a.png", "--question", "\ud83d"], r"--question: the question has '\ud83d'"),
        (["chat", "--out", "a.png", "--question", "a", "--image", "data:,"], '"image" holds a URL, data:,'),
        (["chat", "--out", "a.png", "--conversation", "c.jsonl"], r"c.jsonl:1: the question has '\ud83d'"),
    ],
)
def test_what_is_no_text_or_image_is_refused_before_the_model_loads(
    command, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    row = r'{"conversations": [{"from": "human", "value": "\ud83d"}]}'
    (tmp_path / "c.jsonl").write_text(row)
    assert main.main([*command, "--model", "M"]) == 2
    error = capsys.readouterr().err
    assert re.search(message.replace("\\", r"\\"), error)
    assert error.replace("\n", "").isprintable()


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
