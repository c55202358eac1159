"""Config files and --config.a.b=c overrides."""

import math
import pathlib
import runpy

import pytest
from ml_collections import ConfigDict

from unitoken_jax.config import Config
from unitoken_jax.config_file import format_config, is_override, load_config

SHIPPED = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "some.py"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads(path):
    assert isinstance(load_config(str(path)), Config)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_returns_a_config_dict(path, monkeypatch):
    monkeypatch.syspath_prepend(str(path.parent))
    assert isinstance(runpy.run_path(str(path))["get_config"](), ConfigDict)


@pytest.mark.parametrize("argument", ["", ":unitoken_34b"])
def test_a_shipped_config_is_found_by_its_name(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage2").mkdir()  # a folder is no config
    shipped = load_config(f"{SHIPPED[0].parent}/stage2.py{argument}")
    assert load_config(f"stage2{argument}") == shipped
    call = f"stage2.get_config({argument[1:] or 'unitoken_7b'!r})"
    (tmp_path / "mine.py").write_text(f"import stage2\ndef get_config():\n    return {call}\n")
    assert load_config("mine.py") == shipped


@pytest.mark.parametrize("name", ["stage2", "stage2:unitoken_7b", "a:b.py", "a:b.py:argument"])
def test_an_existing_file_counts_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name.removesuffix(":argument")).write_text(
        "def get_config(_=None):\n    return {'train': {'steps': 7}}\n"
    )
    assert load_config(name).train.steps == 7


@pytest.mark.parametrize("name", ["stage", "runs/stage2", "stage2.py:unitoken_34b", "gs://bucket/stage2.py"])
def test_a_wrong_name_lists_the_shipped_ones(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = f"config file {name.removesuffix(':unitoken_34b')} does not exist, .* there are stage[123], "
    with pytest.raises(FileNotFoundError, match=expected) as caught:
        load_config(name)
    assert all(path.stem in str(caught.value) for path in SHIPPED)


def test_a_wrong_argument_lists_them_too():
    with pytest.raises(ValueError, match=r"stage2\.py: .*unitoken_43b.* there are unitoken_34b, unitoken_7b"):
        load_config("stage2:unitoken_43b")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_formatted_config_is_a_config_file_of_the_same_config(path, write):
    config = load_config(path.stem)
    assert load_config(write(format_config(config))) == config


def test_every_value_survives_formatting(write):
    strings = ("'a' \"b\"", "c\\d\n", "röt \U0001f600 \x7f\u2028", "")
    sources = [{"path": text, "weight": 1e-300} for text in strings]
    values = {"data": {"sources": sources}, "train": {"spike_sigma": math.inf, "steps": 10**12}}
    values["model"] = {"sequence": {"grids": [[1, 2]]}, "generation": {"speculate": None}}
    config = load_config(write(f"from math import inf\ndef get_config():\n    return {values!r}\n"))
    assert load_config(write(format_config(config))) == config


def test_states_only_what_differs(write):
    config = load_config(write("def get_config():\n    return {'train': {'steps': 7}}\n"))
    assert config.train.steps == 7
    assert config.data == Config().data


def test_argument_reaches_get_config(write):
    path = write("def get_config(size=None):\n    return {'train': {'steps': int(size or 1)}}\n")
    assert load_config(path).train.steps == 1
    assert load_config(path + ":42").train.steps == 42


def test_neighbours_are_imported_from_the_configs_own_folder(tmp_path):
    for folder, steps in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "base.py").write_text(f"STEPS = {steps}\n")
        text = "import base\ndef get_config():\n    return {'train': {'steps': base.STEPS}}\n"
        (tmp_path / folder / "run.py").write_text(text)
    assert load_config(str(tmp_path / "a" / "run.py")).train.steps == 1
    assert load_config(str(tmp_path / "b" / "run.py")).train.steps == 2


def test_config_dict_is_accepted(write):
    text = "from ml_collections import ConfigDict\ndef get_config():\n"
    path = write(text + "    return ConfigDict({'train': {'steps': 7}})\n")
    assert load_config(path).train.steps == 7


def test_overrides_are_literals_or_strings(write):
    path = write("def get_config():\n    return {'train': {'steps': 7}}\n")
    config = load_config(
        path,
        [
            "--config.train.steps=9",
            "--config.train.dtype=float32",
            "--config.optimizer.weight_decay=0",
            "--config.model.vq.channel_multipliers=(1, 2)",
            "--config.data.sources=[{'path': 'a.jsonl'}]",
        ],
    )
    assert (config.train.steps, config.train.dtype, config.optimizer.weight_decay) == (9, "float32", 0.0)
    assert config.model.vq.channel_multipliers == (1, 2)
    assert config.data.sources[0].path == "a.jsonl"


def test_overrides_have_the_type_of_their_key(write):
    config = load_config(
        write("def get_config():\n    return {}\n"),
        [
            "--config.train.init_from=2024",
            "--config.train.wandb=",
            "--config.train.scan_layers=false",
            "--config.model.generation.speculate=16",
            "--config.model.sequence.grids=[[1, 2], [2, 1]]",
            "--config.data.sources=({'path': 'a.jsonl'}, {'path': 'b=c.jsonl', 'weight': 2})",
        ],
    )
    assert (config.train.init_from, config.train.wandb) == ("2024", "")
    assert config.train.scan_layers is False
    assert config.model.generation.speculate == 16
    assert config.model.sequence.grids == ((1, 2), (2, 1))
    assert [source.path for source in config.data.sources] == ["a.jsonl", "b=c.jsonl"]
    assert config.data.sources[1].weight == 2.0


def test_what_may_be_none_is_set_to_none(write):
    path = write("def get_config():\n    return {'model': {'generation': {'speculate': 8}}}\n")
    assert load_config(path).model.generation.speculate == 8
    config = load_config(path, ["--config.model.generation.speculate=None"])
    assert config.model.generation.speculate is None


def test_the_last_override_of_a_key_counts(write):
    overrides = ["--config.data.validation=({'path': 'a'},)", "--config.data.validation=()"]
    assert load_config(write("def get_config():\n    return {}\n"), overrides).data.validation == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.train.stesp=1", r"unknown config key train\.stesp.*train\.steps"),
        ("--config.trian.steps=1", r"unknown config key trian.*train"),
        ("--config.train.steps=many", r"train\.steps is 'many'; expected int"),
        ("--config.train.dtype=float16", r"allowed: 'float32', 'bfloat16'"),
        ("--config.data.row_pictures=3", r"row_pictures.* is now called data\.row_images"),
        ("--config.train=3", r"train is a section"),
        ("--config.train.steps.deep=3", r"train\.steps is a value, not a section"),
        ("--config.model.generation.speculate=many", r"speculate is 'many'; expected int"),
        ("--config.train.scan_layers=maybe", r"train\.scan_layers is 'maybe'; expected bool"),
        ("--config.optimizer.groups=[{'pattren': ''}]", r"groups\[0\]\.pattren.* mean .*\.pattern"),
        ("--config.train.steps", r"expected --config\.section\.key=value"),
    ],
)
def test_bad_overrides_name_the_key(write, override, message):
    with pytest.raises(ValueError, match=message):
        load_config(write("def get_config():\n    return {}\n"), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def get_config():\n    return {'trian': {}}\n",
            r"some\.py: unknown config key trian.*Did you mean train",
        ),
        (
            "def get_config():\n    return {'data': {'sources': [{'pictures': 'x'}]}}\n",
            r"some\.py: config key data\.sources\[0\]\.pictures is now called data\.sources\[0\]\.images",
        ),
        ("def get_config(:\n", r"some\.py, line 1"),
        ("x = 1\n", r"some\.py: defines no get_config"),
        ("def get_config():\n    return 3\n", r"returned int; expected a dict"),
        ("def get_config():\n    return {'a': missing}\n", r"some\.py: NameError: .*missing"),
    ],
)
def test_bad_files_are_named(write, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(text))


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py does not exist"):
        load_config("nowhere.py:7b")


def test_is_override():
    assert is_override("--config.a=1")
    assert not is_override("--configuration=1")
