"""What GenEval's and T2I-CompBench++'s scorers write, taken up into a run's report; files of other runs."""

import json
import subprocess
import sys

import pytest

from tests.helpers.benchmark_files import write_lines
from tests.helpers.html_page import read_page
from tests.helpers.tiny_model import noise
from unitoken_jax.cli import main
from unitoken_jax.evaluate.drawing.gallery import write_gallery
from unitoken_jax.evaluate.drawing.prompts import write_drawn
from unitoken_jax.evaluate.drawing.scorers import ScoresError, import_scores
from unitoken_jax.evaluate.recipe import write_json
from unitoken_jax.evaluate.registry import find_drawing

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RIGHT = {"single_object": 4, "two_object": 3, "counting": 1, "colors": 4, "position": 0, "color_attr": 2}


def run_folder(root, name, data, number, out):
    """A drawn run's folder, with images of noise."""
    benchmark = find_drawing(name)
    prompts = benchmark.read(data, number)
    recipe = {"format": 1, "benchmark": benchmark.name, "settings": {"number": number, "guidance": 5.5}}
    root.mkdir(parents=True)
    write_json(root / "recipe.json", recipe | {key: {} for key in ("dataset", "data", "template", "model")})
    write_drawn(root, prompts)
    for prompt in prompts:
        (out / prompt.files[0]).parent.mkdir(parents=True, exist_ok=True)
        if prompt.metadata:
            (out / prompt.metadata[0]).write_text(prompt.metadata[1])
        for file in prompt.files:
            noise(0).save(out / file)
    write_gallery(root, benchmark, prompts, recipe["settings"])
    return root


def asked(tag):
    return {"tag": tag, "include": [{"class": "bench", "count": 1}], "prompt": f"a bench, {tag}"}


@pytest.fixture
def geneval(tmp_path):
    data = write_lines(tmp_path / "m.jsonl", *(json.dumps(asked(tag)) for tag in TAGS))
    return run_folder(tmp_path / "geneval", "GenEval", data, 4, tmp_path / "geneval")


def judged(where="/elsewhere/geneval"):
    """results.jsonl's entries, in the order in which a file system may list folders."""
    return [
        {
            "filename": f"{where}/{order:05d}/samples/{sample:05d}.png",
            "tag": tag,
            "prompt": f"a bench, {tag}",
            "correct": sample < RIGHT[tag],
            "reason": "" if sample < RIGHT[tag] else "expected bench>=1, found 0\nno target",
            "metadata": json.dumps(asked(tag)),
            "details": "{}",
        }
        for order, tag in reversed(list(enumerate(TAGS)))
        for sample in range(4)
    ]


def lines_of(path, entries):
    return write_lines(
        path, *(json.dumps(entry).replace("/", "\\/") for entry in entries)
    )  # as pandas writes


def test_genevals_verdicts_enter_the_report(geneval, tmp_path, capsys):
    before = (geneval / "report.md").read_text()
    assert "| overall | by its authors' scorer | 0.58 | 0.63 |" in before
    scores = lines_of(tmp_path / "results.jsonl", judged())
    assert main.main(["evaluate", "--scores", str(scores), "--out", str(geneval), "--debug"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["GenEval (24 images): 0.5833", "  single object: 1.0000", "  two objects: 0.7500"]
    report = (geneval / "report.md").read_text()
    assert "| overall | 0.5833 | 0.58 | 0.63 |\n| single object | 1.0000 | 0.98 | 0.99 |" in report
    assert "| color attribution | 0.5000 | 0.32 | 0.39 |" in report
    page = read_page(geneval / "report.html")
    assert "The first of 10 failures" in page.text
    assert "expected bench>=1, found 0; no target" in page.text
    assert len(page.images) == 24 + 10


def test_the_mean_is_of_tasks_not_of_images(tmp_path):
    tags = ("colors", "colors", "position")
    data = write_lines(tmp_path / "m.jsonl", *(json.dumps(asked(tag)) for tag in tags))
    root = run_folder(tmp_path / "run", "GenEval", data, 1, tmp_path / "run")
    entries = [
        {"filename": f"run/{n:05d}/samples/00000.png", "tag": tag, "correct": n < 2, "reason": ""}
        | {"metadata": json.dumps(asked(tag))}
        for n, tag in enumerate(tags)
    ]
    lines = import_scores(lines_of(tmp_path / "r.jsonl", entries), root, "geneval")
    assert lines[0] == "GenEval (3 images): 0.5000"
    assert "mean of the tasks that are there; single object, two objects" in lines[3]


def test_taking_up_scores_needs_no_jax(geneval, tmp_path):
    scores = lines_of(tmp_path / "results.jsonl", judged())
    code = (
        "import sys\nfrom unitoken_jax.cli import main as cli\n"
        f"assert cli.main(['evaluate', '--scores', {str(scores)!r}, '--out', {str(geneval)!r}]) == 0\n"
        "assert not {'jax', 'flax', 'orbax', 'tokenizers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def changed(at, **values):
    entries = judged()
    entries[at] |= values
    return entries


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (judged()[1:], r"s\.jsonl lacks 1 of 24 images, the first is 00005/samples/00000\.png"),
        ([*judged(), judged()[2]], r"s\.jsonl:25: 00005/samples/00002\.png again; it is at line 3"),
        (changed(1, filename="x/00006/samples/00000.png"), r"s\.jsonl:2: .* is no image of the run in"),
        (
            changed(1, metadata=json.dumps(asked("x"))),
            r"s\.jsonl:2: .* judged by 'a bench, x', but .*'a bench, c",
        ),
        (changed(1, tag="counting"), "another run's"),
        (changed(1, correct=0.5), "no line of GenEval's results.jsonl"),
        ([[]], "no line of GenEval's results.jsonl"),
        ([], "lacks 24 of 24 images"),
    ],
)
def test_scores_of_other_images_are_refused(geneval, tmp_path, entries, message):
    before = (geneval / "report.html").read_bytes()
    with pytest.raises(ScoresError, match=message):
        import_scores(lines_of(tmp_path / "s.jsonl", entries), geneval)
    assert (geneval / "report.html").read_bytes() == before


def test_scores_of_a_run_beside_this_one_are_refused(geneval, tmp_path):
    other = run_folder(tmp_path / "other", "GenEval", tmp_path / "m.jsonl", 4, tmp_path / "other")
    scores = lines_of(tmp_path / "s.jsonl", judged(str(other)))
    with pytest.raises(ScoresError, match="lies in another folder than"):
        import_scores(scores, geneval)
    assert import_scores(scores, other)[0].startswith("GenEval (24 images)")


@pytest.fixture
def t2i(tmp_path):
    out = tmp_path / "t2i"
    for name in ("color", "shape"):
        data = write_lines(tmp_path / f"{name}_val.txt", "a red book", "a blue cup")
        run_folder(out / name, "T2I-CompBench++", data, 2, out)
    return out


def given(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"question_id": number, "answer": value} for number, value in values]
    (folder / "vqa_result.json").write_text(json.dumps(entries))
    return folder / "vqa_result.json"


def test_t2i_compbenchs_lists_enter_each_others_report(t2i):
    values = list(enumerate(["0.5000", "1.0000", "0.2500", "0.0000"]))
    lines = import_scores(given(t2i / "color" / "annotation_blip", values), t2i / "color")
    assert lines == [
        "T2I-CompBench++ (4 images): 0.4375",
        f"report: {t2i / 'color' / 'report.html'}",
    ]
    import_scores(given(t2i / "shape" / "annotation_blip", enumerate([1, 1, 1, 0.5])), t2i / "shape")
    report = (t2i / "shape" / "report.md").read_text()
    assert "| color | 0.4375 | 0.7115 | 0.7833 |\n| shape | 0.8750 | 0.5179 | 0.5847 |" in report
    assert "| texture | by its authors' scorer | 0.667 | 0.7315 |" in report
    page = read_page(t2i / "color" / "report.html")
    assert page.text.index("0.000") < page.text.rindex("0.250") < page.text.rindex("0.500")


def test_bad_t2i_files(t2i, tmp_path):
    color, four = t2i / "color", list(enumerate([0.5] * 4))
    blip = color / "annotation_blip"
    for values, message in (
        (four[:3], "lacks 1 of 4 images, the first is color/samples/a blue cup_000003.png"),
        ([*four, (4, 0.5)], "question_id 4, but the run has 4 images"),
        ([*four, (3, 0.5)], "question_id 3 twice"),
        ([*four[:3], (3, 50)], "question_id 3 has 50"),
        ([*four[:3], (3, "x")], "expected .*question_id"),
    ):
        with pytest.raises(ScoresError, match=message):
            import_scores(given(blip, values), color)
    with pytest.raises(ScoresError, match="the score of list color is annotation_blip"):
        import_scores(given(color / "annotation1_blip" / "VQA" / "result", four), color)
    with pytest.raises(ScoresError, match=r"does not lie in .*shape, and names no prompts"):
        import_scores(given(blip, four), t2i / "shape")
    with pytest.raises(FileNotFoundError, match=r"holds no recipe\.json: .* of one list"):
        import_scores(blip / "vqa_result.json", t2i)
    with pytest.raises(ScoresError, match="is a run of T2I-CompBench\\+\\+, not of GenEval"):
        import_scores(blip / "vqa_result.json", color, "GenEval")
    (color / "prompts.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="call the command that drew the images again"):
        import_scores(blip / "vqa_result.json", color)


def test_scores_stand_alone(geneval):
    with pytest.raises(ValueError, match=r"--out .*report\.md is a file; expected a folder"):
        main.main(["evaluate", "--scores", "s", "--out", str(geneval / "report.md"), "--debug"])
    with pytest.raises(FileNotFoundError, match="no scores at"):
        import_scores(geneval / "none.jsonl", geneval)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("00001/metadata.jsonl", "", r"metadata\.jsonl: not what was written there"),
        ("00001/metadata.jsonl", "[]", r"metadata\.jsonl: .*tag, include, prompt: absent"),
        (
            "prompts.jsonl",
            '{"prompt": "a", "files": []}',
            r"prompts\.jsonl:1: expected a prompt and its files",
        ),
        (
            "prompts.jsonl",
            '{"prompt": "a", "files": [3]}',
            r"prompts\.jsonl:1: expected a prompt and its files",
        ),
        ("00001/samples/00002.png", "", r"00001.samples.00002\.png: not an image to show"),
        ("s.jsonl", "[" * 99_999, r"s\.jsonl:1: no line .*nested too deep"),
        ("s.jsonl", '{"reason": "\\ud83d"}', r"s\.jsonl:1: no line .*'\\ud83d' alone is half"),
        ("s.jsonl", "\udced", r"s\.jsonl: not UTF-8 \(.*s\.jsonl:1: "),
    ],
)
def test_a_damaged_file_of_a_run_is_named(geneval, tmp_path, name, content, message):
    scores = lines_of(geneval / "s.jsonl", judged())
    (geneval / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        import_scores(scores, geneval)
