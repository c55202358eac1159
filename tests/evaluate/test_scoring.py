"""Every benchmark's score on hand-made rows whose score is known, and rows that cannot be judged."""

import pathlib

import pytest

from unitoken_jax.evaluate.registry import UNDERSTANDING_BENCHMARKS, find_understanding
from unitoken_jax.evaluate.understanding.mme import PERCEPTION, REASONING
from unitoken_jax.evaluate.understanding.scoring import JUDGE
from unitoken_jax.evaluate.understanding.table import Table, TableError


def table_of(*rows, **common):
    rows = [{"index": str(number), "question": "?"} | common | row for number, row in enumerate(rows)]
    return Table(pathlib.Path("d.tsv"), tuple(rows[0]), rows, list(range(2, 2 + len(rows))))


def scored(name, *rows, **common):
    return find_understanding(name)[0].score(table_of(*rows, **common))


AB = {"A": "cat", "B": "dog"}


def said(answer, prediction, **more):
    return {"answer": answer, "prediction": prediction, **more}


@pytest.mark.parametrize("name", ["MMStar", "SEED", "AI2D"])
def test_choices(name):
    rows = [
        said("A", "A", category="x"),
        said("A", "a dog", category="x"),
        said("B", "(B)", category="y"),
        said("B", "no idea", category=""),
    ]
    found = scored(name, *rows, **AB)
    assert found.score == 50
    assert found.matches == ["A", "B", "B", None]
    assert found.parts == {"category: x": 50, "category: y": 100}


def test_scenes_have_options_yes_or_no_and_open_answers():
    rows = [
        said("A", "A", category="colour", **AB),
        said("B", "The dog.", category="colour", **AB),
        said("B", "A", category="shape", **AB),
        said("Yes", "yes", category="exists"),
        said("No", "Yes, there is.", category="exists"),
        said("No", "nothing that i know", category="exists"),
        said("a red circle centre", "A red circle centre.", category="caption"),
        said("a red circle centre", "a red circle centre and a 7", category="caption"),  # invented
        said("3 1", " ", category="digits", **{"l2-category": "TextRead"}),
    ]
    found = scored("Scenes", *rows)
    assert found.matches == [
        *("A", "B", "A", "Yes", "Yes", None),
        *("a red circle centre", "a red circle centre and a 7", None),
    ]
    assert found.hits == [True, True, False, True, False, False, True, False, False]
    assert found.score == pytest.approx(100 * 4 / 9)
    shares = {"colour": 100, "shape": 0, "exists": 100 / 3, "caption": 50, "digits": 0, "TextRead": 0}
    assert found.parts == pytest.approx(shares)


def test_mmbench_counts_a_question_when_every_rotation_is_right():
    rows = [
        said("A", "A", index="3", split="dev"),
        said("B", "dog", index="1000003", A="cat", split="dev"),
        said("A", "A", index="4", split="dev"),
        said("B", "A", index="1000004", split="dev"),
        said("A", "A", index="2000004", split="dev"),
        said("A", "B", index="5", split="dev"),
        said("A", "A", index="1000005", split="dev"),
        said("B", "B", index="6", split="dev"),
    ]
    found = scored("MMBench_EN", *rows, **AB)
    assert found.score == 50
    assert found.parts == {"split: dev": 50, "not circular": 75}
    assert not found.notes


def test_mmbench_takes_the_files_own_groups():
    """VLMEvalKit's column g_index: another distance of rotations, or rows that only look like rotations."""
    rows = [
        said("A", "A", index="3", g_index="3"),
        said("B", "A", index="103", g_index="3.0"),  # as pandas may have written it
        said("A", "A", index="1000003", g_index="1000003"),
    ]
    found = scored("MMBench_EN", *rows, **AB)
    assert (found.score, found.parts) == (50, {"not circular": 100})
    assert not found.notes
    with pytest.raises(
        TableError, match=r"\(index 4\), column 'index': a rotation of question 3, which is no"
    ):
        scored("MMBench_EN", said("A", "A", index="4", g_index="3"), **AB)


def test_mmbench_without_rotations_says_so():
    (note,) = scored("MMBench_CN", said("A", "A", index="1"), **AB).notes
    assert "not MMBench's circular score" in note


def test_mmmu_counts_validation_and_turns_open_questions_into_choices():
    open_ = {"A": "", "B": ""}
    rows = [
        said("A", "A", split="validation", **AB),
        said("B", "A", split="validation", **AB),
        said("3.5", "it is 3.5", split="validation", **open_),
        said("3.5", "none of the other answers", split="validation", **open_),
        said("C", "C", split="validation", **open_),  # wanted is option C, which is not there
        said("A", "A", split="dev", **AB),
    ]
    found = scored("MMMU", *rows)
    assert found.hits == [True, False, True, False, False, True]
    assert found.score == 40
    assert found.parts == {"split: dev": 100, "split: validation": 40}
    assert found.notes == ["1 open questions whose answer is a capital letter cannot be hit by this rule"]
    with pytest.raises(TableError, match="no row has 'validation'"):
        scored("MMMU", said("A", "A", split="dev"), **AB)


def test_mmmus_open_questions_whose_answer_is_a_letter():
    """As VLMEvalKit: B is what "Other Answers" is, and Z whatever names no option."""
    open_ = {"A": "", "B": "", "C": "", "split": "validation"}
    predictions = ["B", "Other Answers", "no idea", "C", "Z"]
    rows = [said(gold, text, **open_) for gold in "BZC" for text in predictions]
    found = scored("MMMU", *rows)
    assert found.hits == [True, True, *[False] * 3, False, False, True, True, True, *[False] * 5]
    assert found.notes == [
        "5 open questions whose answer is a capital letter cannot be hit by this rule",
        '5 open questions whose answer is B are hit by "B" and "Other Answers"',
        "5 open questions whose answer is Z are hit by what names no option",
    ]
    assert scored("MMMU", said("C", "C", **open_ | {"C": "a cat"})).hits == [True]


def mme(category, image, *predictions):
    return [said("Yes", text, category=category, image_path=image) for text in predictions]


def test_mme_adds_accuracy_and_pairs():
    rows = []
    for category in PERCEPTION + REASONING:
        rows += mme(category, "1.png", "Yes", "yes, it is")
    found = scored("MME", *rows)
    assert (found.score, found.parts["perception"], found.parts["reasoning"]) == (2800, 2000, 800)
    assert find_understanding("MME")[0].per_point == 28
    rows += [*mme("color", "2.png", "Yes", "No"), *mme("color", "3.png", "No", "who knows")]
    found = scored("MME", *rows)
    assert found.parts["color"] == pytest.approx(100 * 3 / 6 + 100 / 3)
    assert found.matches[-1] is None


def test_part_of_mme_has_no_total():
    found = scored("MME", *mme("color", "1.png", "Yes", "Yes"))
    assert (found.score, found.parts) == (None, {"color": 200})
    assert "lacks the categories OCR" in found.notes[0]


def test_hallusionbench_has_three_accuracies():
    def row(group, figure, question, right):
        return said("Yes", "Yes" if right else "No", index=f"H_VD_x_{group}_{figure}_{question}")

    rows = [
        row(0, 0, 0, True),
        row(0, 0, 1, True),
        row(0, 1, 0, False),
        row(0, 1, 1, False),
        row(1, 0, 0, True),
    ]
    found = scored("HallusionBench", *rows, **{"l2-category": "chart"})
    assert found.parts["aAcc"] == found.score == 60
    assert found.parts["fAcc"] == pytest.approx(200 / 3)  # 0/0, 1/0 of three figures
    assert found.parts["qAcc"] == pytest.approx(100 / 3)  # 1/0 of three questions
    table = [{**row(0, 0, 0, True), "category": "VD"}, {**row(0, 0, 1, False), "category": "VS"}]
    parts = scored("HallusionBench", *table, **{"l2-category": "chart"}).parts
    assert parts == {
        **{"aAcc": 50, "fAcc": 0, "qAcc": 50, "mean of the three": pytest.approx(100 / 3)},
        **{"category: VD, aAcc": 100, "category: VD, fAcc": 100, "category: VD, qAcc": 100},
        **{"category: VS, aAcc": 0, "category: VS, fAcc": 0, "category: VS, qAcc": 0},
        **{"l2-category: chart, aAcc": 50, "l2-category: chart, fAcc": 0, "l2-category: chart, qAcc": 50},
    }
    other = [
        *rows,
        {**row(0, 0, 0, False), "l2-category": "table"},
    ]  # another group, though its numbers agree
    assert scored("HallusionBench", *other, **{"l2-category": "chart"}).parts["fAcc"] == 50


def test_ocrbench_counts_of_a_thousand():
    rows = [said("['a', 'b']", "B", category="x"), said("['c']", "d", category="x")]
    found = scored("OCRBench", *rows)
    assert (found.score, found.parts, find_understanding("OCRBench")[0].per_point) == (
        500,
        {"category: x": 50},
        10,
    )
    assert scored("OCRBench", *rows * 500).notes == []


def test_mathvista_tells_what_it_can_without_a_judge():
    def row(kind, answer, prediction, **more):
        return said(answer, prediction, question_type="free_form", answer_type=kind, **more)

    choice = {"question_type": "multi_choice", "answer_type": "text", "answer_option": "B"}
    choice["choices"] = "['3', '4', '5']"
    rows = [
        said("4", "B", **choice),
        said("4", "A", **choice),
        said("4", "hard to say", **choice),
        row("integer", "0", "0"),
        row("integer", "7", "it is 7"),
        row("float", "1.50", "1.5"),
        row("text", "cat", "cat"),
    ]
    found = scored("MathVista", *rows)
    assert found.score is None
    assert found.matches == ["B", "A", JUDGE, "0", JUDGE, "1.5", JUDGE]
    assert found.parts == {"no-judge, a lower bound": pytest.approx(300 / 7)}
    assert found.notes == ["3 of 7 rows need an LLM judge"]


def test_mmvet_is_the_judges():
    found = scored("MMVet", said("a", "a"))
    assert (found.score, found.matches) == (None, [JUDGE])


def test_files_without_answers_are_for_the_server():
    benchmark, dataset = find_understanding("MMBench_TEST_EN")
    assert benchmark.needed_columns(dataset) == ("A", "B")
    assert benchmark.needed_columns("MMBench_DEV_EN") == ("A", "B", "answer")
    found = scored("MMBench_TEST_EN", {"prediction": "A"}, **AB)
    assert found.score is None
    assert "benchmark's server" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "MMStar",
            said("C", "A", **AB),
            r"d\.tsv:2 \(index 0\), column 'answer': 'C' is none of the options A, B",
        ),
        ("MMStar", said("", "A", **AB), "'' is none of the options"),
        ("MMStar", said("\uff21", "A", **AB), "is none of the options A, B"),  # a full-width A
        (
            "MMStar",
            said("A", "A", A="", B="dog"),
            'none of the options B; .* takes the text "None" for nothing',
        ),
        ("MMBench_EN", said("A", "A", index="x1", **AB), "column 'index': not a whole number"),
        ("MMBench_EN", said("A", "A", index="9" * 5000, **AB), "column 'index': not a whole number"),
        ("MMBench_EN", said("A", "A", g_index="", **AB), "column 'g_index': not a whole number"),
        ("MMBench_EN", said("A", "A", index="1000007", **AB), "a rotation of question 7, which is no row"),
        ("MMMU", said("", "A", A="", B="", split="validation"), "column 'answer': empty"),
        ("Scenes", said("", "A", category="caption"), "column 'answer': empty"),
        ("Scenes", said("C", "A", category="colour", **AB), "'C' is none of the options A, B"),
        ("MME", said("yes", "Yes", category="color", image_path="1"), "'yes'; expected Yes or No"),
        ("MME", said("Yes", "Yes", category="colour", image_path="1"), "'colour' is none of MME's 14"),
        ("MME", said("Yes", "Yes", category="color", image_path="1"), "1 questions about '1'; MME asks two"),
        ("HallusionBench", said("Yes", "Yes", index="VD_1_2", **{"l2-category": "x"}), "at least six parts"),
        ("OCRBench", said("a word", "x", category="x"), "is no Python list"),
        ("OCRBench", said("['a', ' ']", "x", category="x"), "a blank reading stands in every"),
        (
            "MathVista",
            said("x", "1", question_type="free_form", answer_type="integer", answer_option="", choices=""),
            "'x' is no integer",
        ),
        (
            "MathVista",
            said("x", "C", question_type="multi_choice", answer_option="C", choices="['x', 'y']"),
            "column 'answer_option': 'C' is none of A, B",
        ),
        (
            "MathVista",
            said("x", "C", question_type="choice", answer_type="text"),
            "column 'question_type': 'choice'; expected multi_choice or free_form",
        ),
    ],
)
def test_rows_that_cannot_be_judged(name, row, message):
    with pytest.raises(TableError, match=message):
        scored(name, row)


def test_names():
    assert find_understanding("mmmu")[1] == find_understanding("MMMU_DEV_VAL")[1] == "MMMU_DEV_VAL"
    assert find_understanding("mmbench_test_cn")[0].name == "MMBench_CN"
    assert sum(benchmark.group == "General" for benchmark in UNDERSTANDING_BENCHMARKS) == 8
    with pytest.raises(ValueError, match=r"unknown benchmark 'MMStarr'\. Did you mean MMStar\?"):
        find_understanding("MMStarr")


def test_a_files_name_tells_its_data_set():
    assert find_understanding("MMBench_EN", "a/M_MMBench_DEV_EN_V11.tsv")[1] == "MMBench_DEV_EN_V11"
    assert find_understanding("MMBench_EN", "MMBench_TEST_EN.tsv", "my_own.tsv")[1] == "MMBench_TEST_EN"
    assert (
        find_understanding("mme", "ft_MME.tsv", "mme.tsv")[1]
        == find_understanding("MME", "awesome.tsv")[1]
        == "MME"
    )
    with pytest.raises(ValueError, match=r"M_MMStar\.tsv bears the name of MMStar, but AI2D was asked for"):
        find_understanding("AI2D", "M_MMStar.tsv")
    with pytest.raises(ValueError, match=r"of AI2D_TEST_NO_MASK, but AI2D_TEST was asked for"):
        find_understanding("AI2D_TEST", "AI2D_TEST_NO_MASK.tsv")
    with pytest.raises(ValueError, match=r"b/MMBench_DEV_CN\.tsv bears the name of MMBench_DEV_CN, but"):
        find_understanding("MMBench_EN", "M_MMBench_DEV_EN.tsv", "b/MMBench_DEV_CN.tsv")
