"""README and pages in docs/: every command runs, with small models and files; what needs hardware is parsed.

A block of indented commands after `<!-- why -->` is parsed only: flags against the command line, and the
configs it names are read with their overrides.
"""

import contextlib
import importlib
import io
import json
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

from tests.helpers.benchmark_files import MMMU_HEADER, geneval_line, mmmu_rows, write_tsv
from tests.helpers.tiny_model import CONFIG, noise, tiny_params, tiny_tokenizer
from unitoken_jax.cli import main
from unitoken_jax.cli.evaluate import with_word
from unitoken_jax.config_file import is_override, load_config

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
README = ROOT / "README.md"


def commands(text: str) -> list[tuple[str, bool]]:
    """(command, whether it is to be run) of every line indented by four spaces, outside fences."""
    found, marked, fenced, block, before = [], False, False, False, ""
    for line in text.replace("\\\n", " ").splitlines():
        fenced ^= line.startswith("```")
        block = line.startswith("    ") and not fenced and (block or not before)
        if block:
            found += [(part.strip(), not marked) for part in line.split("&&")]
        elif line:
            marked = line.startswith("<!--")
        before = line
    return found


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def parse(words: list[str]) -> None:
    """A `unitoken` command's flags, and its config with the overrides."""
    overrides = [word for word in words if is_override(word)]
    argv = with_word([word for word in words[1:] if not is_override(word)])
    arguments = main.build_parser().parse_args(argv)
    if arguments.verb in ("train", "plan"):
        name = arguments.config or arguments.show_config
        assert arguments.workdir if arguments.verb == "train" and arguments.config else True
        if not name.endswith(".py"):  # a shipped one
            load_config(name, overrides)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with everything that the pages name: models, published files, images, data, benchmarks."""
    import dataclasses

    from tests.checkpoint.test_adapter import LORA, trained
    from unitoken_jax.checkpoint.adapter import Base, save_adapter
    from unitoken_jax.checkpoint.model_directory import save_model
    from unitoken_jax.convert.to_torch import export

    root = tmp_path_factory.mktemp("places")
    sequence = dataclasses.replace(CONFIG.sequence, image_size=(24, 24))
    config = dataclasses.replace(CONFIG, sequence=sequence)
    save_model(root / "MODEL", config, tiny_params(), tiny_tokenizer())
    shutil.copytree(root / "MODEL", root / "quickstart" / "model")
    save_adapter(root / "ADAPTER", trained(), LORA, Base.of(root / "MODEL"))
    export(root / "MODEL", root / "UNITOKEN", vqgan=True)
    shutil.copytree(root / "UNITOKEN" / "SigLIP", root / "SIGLIP")
    shutil.copytree(root / "UNITOKEN" / "chameleon", root / "chameleon")

    noise(0).save(root / "my.png")
    asked = {"from": "human", "value": "<|image|>what is this?"}
    row = {"image": ["my.png"], "conversations": [asked, {"from": "gpt", "value": "a red circle"}]}
    (root / "train.jsonl").write_text(4 * (json.dumps(row) + "\n"))
    (root / "conversations.json").write_text(json.dumps([row]))
    (root / "photos" / "garden").mkdir(parents=True)
    for number in (1, 2):
        noise(number).save(root / "photos" / "garden" / f"{number}.png")
    (table,) = re.findall(r"```csv\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    (root / "photos" / "captions.csv").write_text(table)
    (config_block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/laptop.md").read_text(), re.DOTALL)
    (root / "my_config.py").write_text(config_block)

    write_tsv(root / "MMMU_DEV_VAL.tsv", MMMU_HEADER, *mmmu_rows())
    (root / "evaluation_metadata.jsonl").write_text(geneval_line("a red circle") + "\n")
    (root / "color_val.txt").write_text("a red circle\n")
    judged = {"tag": "single_object", "correct": True, "metadata": geneval_line("a red circle")}
    names = [f"geneval/00000/samples/0000{sample}.png" for sample in range(4)]
    lines = [json.dumps({"filename": name} | judged) + "\n" for name in names]
    (root / "results.jsonl").write_text("".join(lines))
    (root / "t2i/color/annotation_blip").mkdir(parents=True)
    scores = [{"question_id": number, "answer": "0.5"} for number in range(10)]
    (root / "t2i/color/annotation_blip/vqa_result.json").write_text(json.dumps(scores))
    requirement = {"category": "single", "prompt": "a circle", "include": [{"kind": "circle"}]}
    (root / "quickstart" / "data").mkdir()
    (root / "quickstart" / "data" / "held_out_prompts.jsonl").write_text(json.dumps(requirement) + "\n")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda page: page.name)
def test_every_command_runs(page, places, tmp_path, monkeypatch, capsys):
    here = tmp_path / "here"
    shutil.copytree(places, here)
    monkeypatch.chdir(here)
    for command, run in commands(page.read_text(encoding="utf-8")):
        words = words_of(command)
        if run and not words[0].startswith("launch/"):  # those are tested below
            assert words[0] == "unitoken", f"{page.name}: {command}: not run by this test, mark it"
            assert main.main(words[1:]) == 0, f"{page.name}: {command}\n{capsys.readouterr().err}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, ROOT / "docs" / "api.md"], ids=lambda page: page.name)
def test_the_lines_of_python_run(page, places, monkeypatch):
    monkeypatch.chdir(places)
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda page: page.name)
def test_every_command_parses(page):
    for command, _ in commands(page.read_text(encoding="utf-8")):
        words = words_of(command)
        if words and words[0] == "unitoken":
            parse(words)
        elif words and words[0] == "python":
            assert (ROOT / words[1]).is_file(), command
        elif words and words[0].startswith("launch/"):
            dry = ["bash", str(ROOT / words[0]), "--dry-run", *words[1:]]
            done = subprocess.run(dry, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            parse(
                ["unitoken", *words[words.index("train") :]] if "train" in words else ["unitoken", "doctor"]
            )


def test_commands_are_found_and_marks_heard():
    text = "a\n\n    unitoken doctor && unitoken train \\\n        --x\n\n```\n    no\n```\n"
    text += "::: module\n    options:\n      x\n\n<!-- why -->\n\n    pip x\n"
    assert commands(text) == [
        ("unitoken doctor", True),
        ("unitoken train          --x", True),
        ("pip x", False),
    ]
    with pytest.raises(SystemExit):
        parse(["unitoken", "train", "--no-such-flag"])


@pytest.mark.parametrize(
    "page", [*PAGES, README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).is_file(), f"{page.name}: {target}"
        # The pages are also a site, which holds nothing but docs/.
        assert page not in PAGES or ".." not in target, f"{page.name}: {target}"


@pytest.mark.slow
def test_the_worked_example_prints_what_its_page_says():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    code, expected = re.findall(r"```python\n(.*?)```\n\nIt prints\n\n```text\n(.*?)```", page, re.DOTALL)[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == expected


def test_files_and_names_that_the_architecture_sends_readers_to_exist():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for line in page[page.index("## Find it") : page.index("## One conversation")].splitlines():
        quoted = re.findall(r"`([^`]+)`", line.rpartition(" | ")[2])
        files = [word for word in quoted if word.endswith(".py")]
        texts = []
        for file in files:
            folder = ROOT if file.startswith(("configs/", "stage")) else ROOT / "unitoken_jax"
            path = ROOT / "configs" / file if file.startswith("stage") else folder / file
            assert path.is_file(), line
            texts.append(path.read_text(encoding="utf-8"))
        for name in set(quoted) - set(files):
            last = name.rpartition(".")[2]
            assert any(f"def {last}(" in text for text in texts), f"{name}: {line}"


def test_the_python_interface_lists_names_that_exist():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for module, members in re.findall(
        r"^::: (\S+)\n    options:\n      members: \[(.*)\]", page, re.MULTILINE
    ):
        loaded = importlib.import_module(module)
        assert [name for name in members.split(", ") if not hasattr(loaded, name)] == [], module


def test_every_page_is_in_the_contents():
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name not in contents] == []
