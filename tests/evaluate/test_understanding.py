"""`unitoken evaluate` on understanding: real files, a tiny random model, kills, repeats and wrong files."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import types

import jax
import pytest

from tests.helpers.benchmark_files import MMMU_HEADER, base64_image, mmmu_rows, write_tsv
from tests.helpers.html_page import read_page
from tests.helpers.tiny_model import CONFIG, noise, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.adapter import load_adapter
from unitoken_jax.cli import main
from unitoken_jax.evaluate import recipe as recipes
from unitoken_jax.evaluate.drawing.t2i_compbench import T2I_COMPBENCH
from unitoken_jax.evaluate.registry import find_benchmark
from unitoken_jax.evaluate.understanding import answering
from unitoken_jax.evaluate.understanding import run as run_module
from unitoken_jax.evaluate.understanding.mmmu import MMMU
from unitoken_jax.evaluate.understanding.multiple_choice import MMSTAR
from unitoken_jax.evaluate.understanding.prompts import find_template
from unitoken_jax.evaluate.understanding.report import averages, read_judged, write_report
from unitoken_jax.evaluate.understanding.run import check_rows, run_benchmark, score_predictions
from unitoken_jax.evaluate.understanding.scenes import SCENES
from unitoken_jax.evaluate.understanding.table import TableError, read_table, row_images
from unitoken_jax.sequence.build import build_prompt
from unitoken_jax.sequence.conversation import make_conversation


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tsv(tmp_path_factory.mktemp("data") / "MMMU_DEV_VAL.tsv", MMMU_HEADER, *mmmu_rows())


@pytest.fixture(scope="module")
def done(model, data, tmp_path_factory):
    """A whole run from the command line."""
    out = tmp_path_factory.mktemp("out")
    argv = ["evaluate", "--model", str(model), "--benchmark", "MMMU", "--data", str(data), "--out", str(out)]
    assert main.main([*argv, "--max-tokens", "6", "--batch", "2", "--debug"]) == 0
    return out


@pytest.mark.slow
def test_a_run_leaves_predictions_results_and_report(done, data):
    table = read_table(done / "tiny_MMMU_DEV_VAL.tsv")
    assert table.columns == ("index", "question", "hint", "A", "B", "answer", "split", "prediction")
    source = read_table(data)
    assert [row["question"] for row in table.rows] == [row["question"] for row in source.rows]
    assert len({row["prediction"] for row in table.rows}) > 1
    results = json.loads((done / "tiny_MMMU_DEV_VAL_results.json").read_text())
    assert (results["rows"], results["benchmark"]) == (6, "MMMU")
    matched = read_table(done / "tiny_MMMU_DEV_VAL_matched.tsv")
    hits = [row["hit"] == "1" for row in matched.rows][:5]
    assert results["score"] == 100 * sum(hits) / 5
    report = (done / "tiny_report.md").read_text()
    assert f"| MMMU | MMMU_DEV_VAL | 6 | {results['score']:.1f} | 34.2 | 32.8 |" in report
    assert "| General |  | 49.8 | 53.3 | MMBench_CN, MMBench_EN" in report
    page = read_page(done / "tiny_report.html")
    assert {size for _, size in page.images} == {(24, 16)}
    assert page.text.count("what is this") == sum(
        "what is this" in row["question"] for row in source.rows[:6]
    )
    assert "paper, stage II" in page.text


@pytest.mark.slow
def test_predictions_are_what_the_model_answers(done, data, model):
    from unitoken_jax import UniToken

    table = read_table(done / "tiny_MMMU_DEV_VAL.tsv")
    ending = "\nOptions:\nA. red\nB. blue\nPlease select the correct answer from the options above. \n"
    asked = ["Question: what is this 1? ", noise(1), ending]
    answers = UniToken.load(model).answer([asked] * 2, max_tokens=6, batch=2)  # a shape that is compiled
    assert answers == [table.rows[1]["prediction"]] * 2


def test_scoring_the_predictions_again_gives_the_same(done, data, tmp_path):
    for number, extra in enumerate(({}, {"data": data})):
        out = tmp_path / str(number)
        lines = score_predictions("MMMU", done / "tiny_MMMU_DEV_VAL.tsv", out, **extra)
        assert lines[-1] == f"report: {out / 'tiny_report.md'}"
        again, first = (json.loads((o / "tiny_MMMU_DEV_VAL_results.json").read_text()) for o in (out, done))
        assert again | {"cut_off": 0, "notes": []} == first | {"cut_off": 0, "notes": []}


def test_scoring_needs_no_jax(done, tmp_path):
    code = (
        "import sys\nfrom unitoken_jax.cli import main as cli\n"
        f"argv = ['evaluate', '--benchmark', 'MMMU', '--out', {str(tmp_path)!r}, '--predictions']\n"
        f"assert cli.main([*argv, {str(done / 'tiny_MMMU_DEV_VAL.tsv')!r}]) == 0\n"
        "assert not {'jax', 'flax', 'orbax', 'tokenizers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_recipe_repeats_a_run_byte_for_byte(done, data, model, tmp_path):
    recipe = done / "tiny_MMMU_DEV_VAL_recipe.json"
    run_benchmark(None, model, data, tmp_path, recipe=recipe)
    for name in ("tiny_MMMU_DEV_VAL.tsv", "tiny_MMMU_DEV_VAL_recipe.json", "tiny_MMMU_DEV_VAL_results.json"):
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes()
    found = recipes.load(recipe)
    assert found["settings"] | {"max_tokens": 6, "batch": 2, "temperature": 0.0} == found["settings"]
    assert len(found["data"]["data"]["sha256"]) == len(found["model"]["weights"]["params"]) == 64

    with pytest.raises(ValueError, match=r"max_tokens 9 was asked for, but .* says 6"):
        run_benchmark(None, model, data, tmp_path, recipe=recipe, max_tokens=9)
    with pytest.raises(ValueError, match="is for MMMU, not for MME"):
        run_benchmark("MME", model, data, tmp_path, recipe=recipe)
    other = write_tsv(tmp_path / "other.tsv", MMMU_HEADER, *mmmu_rows()[:4])
    with pytest.raises(ValueError, match=r"is another run's:\n  data\.data\.bytes"):
        run_benchmark(None, model, other, tmp_path / "b", recipe=recipe)


def test_a_run_with_an_adapter_is_never_taken_for_one_without(done, data, model, adapter, tmp_path, capsys):
    recipe = done / "tiny_MMMU_DEV_VAL_recipe.json"
    argv = ["evaluate", "run", "--data", str(data), "--out", str(done), "--adapter", str(adapter)]
    before = sorted(done.iterdir())
    assert (
        main.main([*argv, "--recipe", str(recipe)]) == 2
    )  # of the adapter's own base, which --model names not
    assert "is another run's:\n  model.adapter.lora.alpha: None there, 6.0 here" in capsys.readouterr().err
    assert sorted(done.iterdir()) == before
    plain = recipes.load(recipe)
    asked = [plain[key] for key in ("benchmark", "dataset")], [plain[key] for key in ("template", "settings")]
    files = {"data": data}
    adapted = recipes.make(*asked[0], files, *asked[1], str(model), load_adapter(adapter))
    assert adapted["model"]["name"] == "tiny+tuned"  # and so are its files called
    assert adapted["model"]["adapter"] == load_adapter(adapter).identity()
    del adapted["model"]["adapter"]
    assert adapted["model"]["weights"] == plain["model"]["weights"]
    assert recipes.make(*asked[0], files, *asked[1], str(model))["model"] == plain["model"]
    argv = ["evaluate", "run", "--data", str(data), "--out", str(done), "--benchmark", "MMMU"]
    assert main.main([*argv, "--adapter", str(model)]) == 2
    assert "no adapter at" in capsys.readouterr().err


def test_the_command_repeats_a_recipe_with_its_own_weights_and_batch_only(
    done, data, model, tmp_path, capsys
):
    from unitoken_jax.checkpoint.model_directory import load_model, save_model

    loaded, other = load_model(model), tmp_path / "other"
    loaded.params["decoder"]["norm"]["scale"] = loaded.params["decoder"]["norm"]["scale"] * 2
    save_model(other, loaded.config, loaded.params, loaded.tokenizer)
    argv = ["evaluate", "--data", str(data), "--out", str(tmp_path / "out")]
    argv += ["--recipe", str(done / "tiny_MMMU_DEV_VAL_recipe.json")]
    assert main.main([*argv, "--model", str(other)]) == 2
    assert "is another run's:\n  model.weights.params" in capsys.readouterr().err
    assert main.main([*argv, "--model", str(model), "--batch", "3"]) == 2
    assert "batch 3 was asked for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on_with_the_same_answers(done, data, model, tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "CHUNK", 2)
    settings = {"max_tokens": 6, "batch": 2}
    run_benchmark("MMMU", model, data, tmp_path / "whole", **settings)
    journal = "tiny_MMMU_DEV_VAL_answers.jsonl"
    lines = (tmp_path / "whole" / journal).read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / journal).write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed while writing
    asked = []
    from unitoken_jax import UniToken

    reply = UniToken.text_results
    spy = lambda self, c, **s: asked.append(len(c)) or reply(self, c, **s)  # noqa: E731
    monkeypatch.setattr(UniToken, "text_results", spy)
    run_benchmark("MMMU", model, data, tmp_path / "cut", **settings)
    assert asked == [2, 2]
    for name in ("tiny_MMMU_DEV_VAL.tsv", journal):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    with pytest.raises(
        ValueError, match=r"answers\.jsonl .* is another run's:\n  settings\.max_tokens: 6 there, 7"
    ):
        run_benchmark("MMMU", model, data, tmp_path / "cut", max_tokens=7, batch=2)


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_what_the_next_one_ends(done, data, model, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from unitoken_jax import UniToken\n"
        "from unitoken_jax.evaluate.understanding import answering\n"
        "from unitoken_jax.evaluate.understanding.run import run_benchmark\n"
        "answering.CHUNK, reply, chunks = 2, UniToken.text_results, []\n"
        "def dies(self, *args, **kwargs):\n"
        "    chunks.append(args)\n"
        "    if len(chunks) == 2:\n"
        "        with open(sys.argv[3] + '/tiny_MMMU_DEV_VAL_answers.jsonl', 'a') as journal:\n"
        "            journal.write('{\"start\": 2')\n"  # as much of a line as had been written
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return reply(self, *args, **kwargs)\n"
        "UniToken.text_results = dies\n"
        "run_benchmark('MMMU', *sys.argv[1:], max_tokens=6, batch=2)"
    )
    argv = [str(model), str(data), str(tmp_path)]
    killed = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny_MMMU_DEV_VAL_answers.jsonl"]
    run_benchmark("MMMU", model, data, tmp_path, max_tokens=6, batch=2)
    for name in ("tiny_MMMU_DEV_VAL.tsv", "tiny_MMMU_DEV_VAL_recipe.json", "tiny_MMMU_DEV_VAL_results.json"):
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes()


def bad_row(column, value):
    rows = mmmu_rows()
    rows[2][MMMU_HEADER.index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("benchmark", "rows", "message"),
    [
        (
            "MMMU",
            bad_row("image", "77"),
            r"d\.tsv:4 \(index 2\), column 'image': refers to the image of index 77",
        ),
        ("MMMU", bad_row("image", "A" * 99), r"d\.tsv:4 \(index 2\), column 'image': broken base64"),
        ("MMMU", bad_row("answer", "E"), r"d\.tsv:4 \(index 2\), column 'answer': 'E' is none of"),
        ("MMMU", bad_row("index", "0"), "column 'index': 0 again"),
        ("MMMU", bad_row("question", "<image 2>?"), "1 images, but the text names <image 2>"),
        ("MMMU", bad_row("question", f"<image {'9' * 5000}>?"), r"d\.tsv:4 \(index 2\), column 'image': "),
        ("MME", mmmu_rows(), "lacks the columns image_path, category"),
        ("MMMMU", mmmu_rows(), "unknown benchmark 'MMMMU'. Did you mean MMMU?"),
    ],
)
def test_bad_files_are_refused_before_the_weights_are_read(
    benchmark, rows, message, model, tmp_path, monkeypatch
):
    from unitoken_jax import UniToken

    monkeypatch.setattr(UniToken, "load", None)
    with pytest.raises(ValueError, match=message) as raised:
        run_benchmark(benchmark, model, write_tsv(tmp_path / "d.tsv", MMMU_HEADER, *rows), tmp_path)
    if benchmark == "MMMU":
        assert str(raised.value).endswith("nothing was asked yet: mend or remove it, and call this again")


@pytest.mark.parametrize(
    "text", ["<s>", "is </s> there?", "<image>", "<|image|>", "<racm3:break>", "IMGIMGAZ"]
)
def test_a_control_tokens_name_in_a_question_is_text(text, model, tmp_path):
    table = MMMU.read(write_tsv(tmp_path / "d.tsv", MMMU_HEADER, *bad_row("question", text)))
    check_rows(model, MMMU, table, find_template("vlmevalkit"))  # refuses nothing
    tokenizer = tiny_tokenizer().literal()
    asked = MMMU.conversation(table, row_images(table), find_template("vlmevalkit"), 2)
    tokens = build_prompt(asked, tokenizer, CONFIG).tokens.tolist()
    other = MMMU.conversation(table, row_images(table), find_template("vlmevalkit"), 3)
    control = [
        [i for i in ids if tokenizer.is_control(i)]
        for ids in (tokens, build_prompt(other, tokenizer, CONFIG).tokens.tolist())
    ]
    assert control[0] == control[1]
    assert f"Question: {text}" in tokenizer.decode(tokens)


def test_predictions_for_rows_without_an_image_are_left_out(tmp_path):
    rows = bad_row("image", "")
    data = write_tsv(tmp_path / "d.tsv", MMMU_HEADER, *rows)
    header = [name for name in MMMU_HEADER if name != "image"]
    predictions = [[*(row[:1] + row[2:]), row[6]] for row in rows]
    path = write_tsv(tmp_path / "m_MMMU_DEV_VAL.tsv", [*header, "prediction"], *predictions)
    lines = score_predictions("MMMU", path, tmp_path, data)
    assert lines[0] == "MMMU (MMMU_DEV_VAL, 5 rows): score 100.00"
    assert "  note: 1 rows without an image were left out" in lines


def test_a_spreadsheets_line_ends_are_no_other_question_and_a_difference_is_shown(tmp_path):
    long = "Which of the following sentences is right, and what is wrong with each of the others? " * 2

    def scored(there, here):
        header = ["index", "question", "A", "B", "answer"]
        data = write_tsv(tmp_path / "d.tsv", [*header, "image"], ["1", here, "a", "b", "A", base64_image()])
        path = write_tsv(tmp_path / "p.tsv", [*header, "prediction"], ["1", there, "a", "b", "A", "A"])
        return score_predictions("MMStar", path, tmp_path / "out", data)

    assert scored("one_x000D_\ntwo_x005F_", "one\r\ntwo_")[0].endswith("score 100.00")
    with pytest.raises(TableError, match=r"others\? one'; .*d\.tsv asks \.\.\. '.*others\? two'") as raised:
        scored(long + "one", long + "two")
    assert len(str(raised.value)) < 500


def test_a_chunk_that_the_model_cannot_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "CHUNK", 2)

    class Full:
        def text_results(self, conversations, **settings):
            if conversations[-1].source == "d.tsv:4":
                raise ValueError("no room")
            return [types.SimpleNamespace(text="A", complete=True) for _ in conversations]

    def ask(row):
        return make_conversation([["?"]], f"d.tsv:{row + 1}")

    journal = tmp_path / "answers.jsonl"
    with pytest.raises(ValueError, match=r"among d\.tsv:3 to d\.tsv:4: no room"):
        answering.answer_rows(Full(), ask, 5, journal, {"settings": {}})
    assert len(journal.read_text().splitlines()) == 2  # what was answered stays


@pytest.mark.parametrize(
    "line",
    ["[]", "3", '{"answers": 3}', '{"start": 0, "answers": [3]}', '{"answers": []}', '{"recipe": 3}', "["],
)
def test_a_journals_line_that_says_nothing_ends_it(line, tmp_path):
    journal, model = tmp_path / "answers.jsonl", types.SimpleNamespace(text_results=None)
    journal.write_text('{"recipe": {"settings": {}}}\n{"start": 0, "answers": [["A", true]]}\n' + line + "\n")
    with pytest.raises(TypeError):  # it goes on to ask, with a model that cannot
        answering.answer_rows(model, lambda row: make_conversation([["?"]]), 2, journal, {"settings": {}})
    assert len(journal.read_text().splitlines()) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 1}', "[" * 99_999])
def test_damaged_results_are_named(tmp_path, content):
    (tmp_path / "m_MMStar_results.json").write_text(content)
    with pytest.raises(ValueError, match=r"m_MMStar_results\.json: "):
        write_report(tmp_path, "m")


def test_other_files_predictions_are_refused(done, tmp_path):
    predictions = done / "tiny_MMMU_DEV_VAL.tsv"

    def scored(*rows):
        score_predictions("MMMU", predictions, tmp_path, write_tsv(tmp_path / "d.tsv", MMMU_HEADER, *rows))

    with pytest.raises(
        TableError, match=r"d\.tsv:8 \(index 9\), column 'index': .*VAL\.tsv has no prediction"
    ):
        scored(*mmmu_rows(), ["9", *mmmu_rows()[0][1:]])
    with pytest.raises(TableError, match=r"VAL\.tsv:7 \(index 5\), column 'index': .*d\.tsv has no such row"):
        scored(*mmmu_rows()[:5])
    with pytest.raises(TableError, match=r"VAL\.tsv:4 \(index 2\), column 'question': 'what .* another file"):
        scored(*bad_row("question", "why?"))
    with pytest.raises(TableError, match=r"VAL\.tsv:4 \(index 2\), column 'answer': 'A'; .* says 'B': pred"):
        scored(*bad_row("answer", "B"))
    with pytest.raises(TableError, match=r"lacks the columns prediction"):
        score_predictions("MMMU", tmp_path / "d.tsv", tmp_path)


def test_prompts(tmp_path):
    table = read_table(write_tsv(tmp_path / "d.tsv", MMMU_HEADER, *mmmu_rows()))
    (text,) = MMSTAR.question_parts(table, 4, [], find_template("vlmevalkit"))
    assert text == "Hint: a hint\nQuestion: how many? \n"
    shown = MMMU.question_parts(table, 5, ["first", "second"], find_template("direct"))
    assert shown[:4] == ["Question: ", "second", " or ", "first"]
    assert shown[4].endswith("B. blue\nAnswer with the option's letter from the given choices directly.")
    with pytest.raises(ValueError, match="unknown template 'x'; known: vlmevalkit, direct"):
        find_template("x")


def test_rules_are_named_in_results_and_report(tmp_path, capsys):
    header = ["index", "question", "A", "B", "answer", "prediction"]
    row = ["0", "which?", "red", "blue", "B", "option B is the right one because of the picture"]
    argv = ["evaluate", "score", "--out", str(tmp_path)]
    for name, rules, score in (("MMStar", "", "100.0"), ("AI2D_TEST", "vlmevalkit-2025-08", "0.0")):
        predictions = write_tsv(tmp_path / f"m_{name}.tsv", header, row)
        chosen = ["--rules", rules] if rules else []
        assert main.main([*argv, "--benchmark", name, "--predictions", str(predictions), *chosen]) == 0
        rules = rules or "vlmevalkit-2025-03"
        assert f"rules: {rules}\n" in capsys.readouterr().out
        assert json.loads((tmp_path / f"m_{name}_results.json").read_text())["rules"] == rules
        assert f"| {score} |" in (report := (tmp_path / "m_report.md").read_text())
        assert f"| {rules} |" in report
        assert rules in read_page(tmp_path / "m_report.html").text
    assert "Not all scores are by the same rules" in report
    assert json.loads((tmp_path / "m_report.json").read_text())["rules"] == {
        "MMStar": "vlmevalkit-2025-03",
        "AI2D": "vlmevalkit-2025-08",
    }
    assert main.main([*argv, "--benchmark", name, "--predictions", str(predictions), "--rules", "x"]) == 2
    assert "unknown rules 'x'; known: vlmevalkit-2025-03, vlmevalkit-2025-08" in capsys.readouterr().err


def test_results_and_recipes_without_rules_are_of_august(done, data, model, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(done, folder)  # with the journal, so that nothing is asked
    results = json.loads((folder / "tiny_MMMU_DEV_VAL_results.json").read_text())
    recipe = json.loads((folder / "tiny_MMMU_DEV_VAL_recipe.json").read_text())
    assert results.pop("rules") == recipe.pop("rules") == "vlmevalkit-2025-03"
    (folder / "tiny_MMMU_DEV_VAL_results.json").write_text(json.dumps(results))
    assert "| vlmevalkit-2025-08 |" in write_report(folder, "tiny").read_text()
    (tmp_path / "old.json").write_text(json.dumps(recipe))
    with pytest.raises(
        ValueError, match=r"old\.json is for rules vlmevalkit-2025-08, not for vlmevalkit-2025"
    ):
        run_benchmark(None, model, data, folder, recipe=tmp_path / "old.json", rules="vlmevalkit-2025-03")
    run_benchmark(None, model, data, folder, recipe=tmp_path / "old.json")
    for kind in ("results", "recipe"):
        again = json.loads((folder / f"tiny_MMMU_DEV_VAL_{kind}.json").read_text())
        assert again["rules"] == "vlmevalkit-2025-08"


def test_a_name_that_is_not_utf_8_is_written_as_far_as_it_goes(tmp_path):
    header = ["index", "question", "A", "B", "answer", "prediction"]
    path = tmp_path / "m\udce9_MMStar.tsv"  # the byte E9, as Python reads it from the command line
    score_predictions("MMStar", write_tsv(path, header, ["0", "?", "a", "b", "A", "A"]), tmp_path)
    assert json.loads((tmp_path / "m\ufffd_MMStar_results.json").read_text())["model"] == "m\ufffd"
    assert "m\ufffd" in (tmp_path / "m\ufffd_report.md").read_text()
    assert T2I_COMPBENCH.run_folder(tmp_path / "a\udce9_val.txt", tmp_path) == tmp_path / "a\ufffd"


def test_averages_are_the_papers():
    general = {"MMMU": 30, "MMBench_CN": 50, "MMBench_EN": 60, "MME": 1400 / 28, "MMStar": 40, "SEED": 70}
    points = general | {"MathVista": 40, "HallusionBench": 60, "AI2D": 70, "OCRBench": 600 / 10}
    found = averages(points)
    assert found["General"] == {"average": 50, "missing": []}
    assert found["TextRead"] == {"average": None, "missing": ["MMVet"]}


def test_another_scripts_letters_are_named_not_guessed(tmp_path):
    header = ["index", "question", "A", "B", "answer", "prediction"]
    given = ("A", "\N{CYRILLIC CAPITAL LETTER A}", "\N{FULLWIDTH LATIN CAPITAL LETTER A}.", "\u7532\u4e59")
    rows = [[str(i), "which?", "red", "blue", "A", text] for i, text in enumerate(given)]
    lines = score_predictions("MMStar", write_tsv(tmp_path / "m_MMStar.tsv", header, *rows), tmp_path)
    assert lines[0] == "MMStar (MMStar, 4 rows): score 25.00"
    assert "  note: 3 predictions name no single option and count as wrong" in lines
    assert "  note: 1 of them say \N{CYRILLIC CAPITAL LETTER A} (Cyrillic capital letter a)" in lines
    assert sum("of them say" in line for line in lines) == 2


def test_a_judges_scores_enter_the_report(tmp_path):
    rows = [["0", "what?", "a", "prediction"]]
    path = write_tsv(tmp_path / "m_MMVet.tsv", ["index", "question", "answer", "prediction"], *rows)
    lines = score_predictions("MMVet", path, tmp_path)
    assert lines[0] == "MMVet (MMVet, 1 rows): score none without a judge or server"
    assert read_table(tmp_path / "m_MMVet_for_judge.tsv").rows[0]["prediction"] == "prediction"
    (tmp_path / "judged.json").write_text('{"MMVet": 31.5}')
    assert "| MMVet | MMVet | 1 | 31.5 |" in write_report(tmp_path, "m").read_text()
    for text, message in (
        ('{"MMMU": 3}', "MMMU: expected a number, for MathVista"),
        ('{"MMVet": 101}', "is 101"),
        ('{"MMVett": 1}', r"judged\.json: unknown benchmark 'MMVett'"),
        ("[" * 99_999, r"judged\.json: not valid JSON .*nested too deep"),
    ):
        (tmp_path / "judged.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_judged(tmp_path)


def test_weights_are_known_by_their_values(model, tmp_path):
    from unitoken_jax.checkpoint.model_directory import save_model

    same, other = tmp_path / "same", tmp_path / "other"
    manifest = {"sources": {"model.safetensors": {"bytes": 3, "sha256": "abc"}}}
    save_model(same, CONFIG, tiny_params(), tiny_tokenizer(), manifest)
    kernel = tiny_params()["decoder"]["layers"]["mlp"]["up"]["kernel"].copy()
    kernel[1, 0, 0] += 1
    changed = jax.tree.map(lambda leaf: leaf, tiny_params())
    changed["decoder"]["layers"]["mlp"]["up"]["kernel"] = kernel
    save_model(other, CONFIG, changed, tiny_tokenizer())
    first, second, third = (recipes.weights_id(path) for path in (model, same, other))
    assert second == first | {"sources": {"model.safetensors": "abc"}}
    assert third == first | {"params": third["params"]} != first
    recipes.check_same({"model": {"weights": first}}, {"model": {"weights": second}}, "the recipe")
    with pytest.raises(ValueError, match=r"the recipe is another run's:\n  model\.weights\.params"):
        recipes.check_same({"model": {"weights": first}}, {"model": {"weights": third}}, "the recipe")
    with pytest.raises(ValueError, match="is no recipe: it lacks format"):
        recipes.load(model / "config.json")


def test_template_fields_reach_the_recipe():
    assert set(dataclasses.asdict(find_template("direct"))) == {"name", "choice", "short"}


def test_scenes_are_asked_with_their_options_or_as_they_stand():
    template = find_template("direct")
    row = {"question": "where is the 7?", "A": "centre", "B": "top left"}
    assert SCENES.question_text(row, template).endswith("B. top left\n" + template.choice)
    assert SCENES.question_text({"question": "Describe it", "A": ""}, template) == "Describe it"


def test_a_benchmark_that_the_package_contains_needs_no_data(monkeypatch):
    read = {}

    def note(model, benchmark, dataset, data, wording):
        read["file"] = data
        raise TableError("that is enough")

    monkeypatch.setattr(run_module, "_read_checked", note)
    with pytest.raises(TableError, match="that is enough"):
        run_benchmark("Scenes", "M", None, "out")
    table = SCENES.read(read["file"])
    assert (len(table.rows), table.path.name) == (200, "Scenes.tsv")
    assert find_benchmark("DrawScenes").data_file(None).is_file()
    with pytest.raises(ValueError, match="MMMU needs --data FILE"):
        run_benchmark("MMMU", "M", None, "out")


def test_the_small_world_enters_no_average_of_the_paper(tmp_path):
    assert "Scenes" not in {name for group in averages({}).values() for name in group["missing"]}
