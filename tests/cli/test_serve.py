import argparse

import pytest

from unitoken_jax.cli import main, serve
from unitoken_jax.config import MeshConfig


def parsed(*options: str) -> argparse.Namespace:
    return main.build_parser().parse_args(["serve", *options])


def test_options_are_limits(tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("one\ntwo\n")
    arguments = parsed(
        *("--rows", "4", "--queue", "7", "--max-prompt-tokens", "100", "--max-answer-tokens", "50"),
        *("--max-seconds", "9", "--max-request-mb", "2", "--max-pixels", "1000", "--api-key-file", str(keys)),
        *("--allow-host", "Example.org", "--allow-host", "b:8080", "--host", "0.0.0.0"),
    )
    engine, http = serve.engine_limits(arguments), serve.http_limits(arguments)
    assert (engine.text_rows, engine.image_rows, engine.queue, engine.seconds) == (4, 4, 7, 9)
    assert (engine.prompt_tokens, engine.answer_tokens) == (100, 50)
    assert (http.body_bytes, http.bodies_bytes, http.pixels) == (2 << 20, 32 << 20, 1000)
    assert (http.hosts, http.keys, http.names) == (("example.org", "b:8080"), ("one", "two"), ())


def test_without_being_told_only_this_machine_may_ask():
    arguments = parsed()
    assert arguments.host == "127.0.0.1"
    limits = serve.http_limits(arguments)
    assert "localhost" in limits.names
    assert serve.http_limits(parsed("--name", "Example.org")).names == (*limits.names, "example.org")
    assert (limits.hosts, limits.keys) == ((), ())


def test_a_mesh_is_three_numbers():
    assert parsed("--mesh", "1,-1,2").mesh == MeshConfig(1, -1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mesh", "2"), "three numbers"),
        (("--mesh", "a,b,c"), "three numbers"),
        (("--port", "65536"), "65535"),
        (("--queue", "0"), "whole number from 1"),
        (("--max-seconds", "0"), "above 0"),
    ],
)
def test_usage_errors(options, message, capsys):
    with pytest.raises(SystemExit):
        parsed(*options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--api-key-file", "none.txt"), "none.txt"),
        (("--api-key-file", "empty.txt"), "holds no key"),
        (("--port", "{port}"), "--port {port}: cannot listen"),
        (("--host", ""), "--host is empty"),
    ],
)
def test_what_cannot_be_served_is_one_line(options, message, tmp_path, monkeypatch, capsys):
    from unitoken_jax.serve import server

    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# none\n")
    with server.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert main.main(["serve", *(option.format(port=port) for option in options)]) == 2
    error = capsys.readouterr().err
    assert message.format(port=port) in error
    assert error.startswith("unitoken serve: ")


def test_a_model_is_called_as_its_folder(tmp_path):
    from unitoken_jax import pretrained
    from unitoken_jax.serve.server import model_name

    assert model_name(tmp_path / "UniToken-7B") == "UniToken-7B"
    assert model_name(f"{tmp_path}/run/adapter/") == "adapter"
    assert model_name(pretrained.model_path()) == "unitoken-small"


def test_a_prompt_has_room_for_the_largest_image():
    import dataclasses
    import types

    from tests.helpers.tiny_model import CONFIG, tiny_tokenizer
    from unitoken_jax.config import SiglipConfig
    from unitoken_jax.serve.server import default_prompt_tokens

    model = types.SimpleNamespace(config=CONFIG, tokenizer=tiny_tokenizer())
    assert default_prompt_tokens(model) == 2048
    model.config = dataclasses.replace(CONFIG, siglip=SiglipConfig())
    discrete, whole, tiles = 3 + 20, 27 * 27, 54 * (54 + 1)
    assert default_prompt_tokens(model) == discrete + 1 + whole + tiles + 1 + 2 + 512
