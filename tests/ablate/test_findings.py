"""An ablation's statistics and tables on made-up scores with known answers."""

import math

import pytest
from PIL import Image

from unitoken_jax.ablate import findings
from unitoken_jax.ablate.cells import CELLS


def rows(differences=(0.10, 0.12, 0.14), cells=CELLS):
    """Every cell at 0.5 in each score it has; the discrete joint model draws worse by `differences`."""
    made = []
    for seed, difference in enumerate(differences):
        for cell in cells:
            row = {"seed": seed, "cell": cell.name, "steps": 7, "seconds": 1.5}
            row |= {"general": 0.5, "textread": 0.5} if cell.understanding else {}
            row |= {"generation": 0.5} if cell.generation else {}
            if cell.name == "discrete-joint":
                row["generation"] -= difference
            made.append(row)
    return made


def test_a_difference_is_taken_seed_by_seed_with_its_interval():
    here = findings.contrast(rows(), {"discrete-joint": 1, "discrete-generation": -1}, "generation")
    assert here.values == pytest.approx((-10, -12, -14))
    assert (here.mean, here.spread) == pytest.approx((-12, 2))
    # One of seven models scatters, by 2, 0 and -2: of those 8, 8 / 7 is the seeds' share. t with 12 degrees.
    assert here.half == pytest.approx(2.178813 * math.sqrt((8 - 8 / 7) / 12) * math.sqrt(2 / 3))
    assert here.effect == "down"


@pytest.mark.parametrize(
    ("paper", "values", "said"),
    [
        (-20.1, (-10, -12, -14), "agrees"),
        (-20.1, (10, 12, 14), "disagrees"),
        (-20.1, (-9, 5, 1), "not seen here"),
        (-1.7, (-10, -12, -14), "disagrees"),
        (-1.7, (0, 1, 0), "none seen there nor here"),
        (-20.1, (-10,), "one seed says nothing"),
        (None, (-10, -12, -14), "not in the paper"),
    ],
)
def test_verdicts(paper, values, said):
    half = 5.0 if len(values) > 1 else math.nan
    assert findings.verdict(paper, findings.Measured(values, half)) == said


def test_chance_is_what_seeds_and_models_do_not_explain():
    """A seed that is better at everything, and models that differ alike in all, leave nothing."""
    made = rows((0.1, 0.1, 0.1))
    for row in made:
        row.update({name: row[name] + 0.01 * row["seed"] for name in findings.METRICS if name in row})
    here = findings.contrast(made, {"discrete-joint": 1, "discrete-generation": -1}, "generation")
    assert (here.mean, here.half, here.effect) == (pytest.approx(-10), pytest.approx(0), "down")
    begun = [*made, {"seed": 3, "cell": "generation", "generation": 0.9}]
    assert findings.contrast(begun, {"discrete-joint": 1}, "generation").half == pytest.approx(0)
    alone = findings.contrast(made, {"discrete-joint": 1}, "generation")
    assert alone.spread == pytest.approx(1)


def test_the_papers_differences_are_those_it_prints():
    """Tables 5 and 6 print them beside the scores."""
    printed = {
        "discrete: joint against understanding": (0.2, -0.3, None),
        "discrete: joint against generation": (None, None, -20.1),
        "unified: joint against understanding": (0.1, -0.6, None),
        "unified: joint against generation": (None, None, -1.7),
        "less data: 2:1 against 1:1": (0.2, 0.1, -0.6),
        "more data: 2:1 against 1:1": (-0.3, -0.1, -11.0),
    }
    terms = dict(findings.FINDINGS)
    for name, numbers in printed.items():
        assert tuple(findings.claimed(terms[name], metric) for metric in findings.METRICS) == numbers


def test_the_report_names_every_model_and_score(tmp_path):
    text = findings.write(tmp_path, rows()).read_text()
    assert "Not finished" not in text
    assert "| discrete-joint | 50.0 ± 0.0 (45.6) | 50.0 ± 0.0 (28.4) | 38.0 ± 2.0 (31.1) | 7 |" in text
    assert "| unified-generation | - | - | 50.0 ± 0.0 (51.1) | 7 |" in text
    assert "| discrete: joint against generation | Generation | -20.1 | -12.0 ± 1.3 | agrees |" in text
    assert all(f"| {model} |" in text for model in findings.PAPER)
    assert (tmp_path / "scores.csv").read_text().splitlines()[2] == "0,generation,,,0.5,7,1.5"
    with Image.open(tmp_path / "ablation.png") as image:
        assert min(image.size) > 500


def test_a_report_of_a_part_leaves_out_what_is_missing(tmp_path):
    text = findings.write(tmp_path, rows((0.1,), CELLS[:3])).read_text()
    assert "unified" not in text.split("## Table 5")[1].replace("unified-generation", "")
    assert "**Not finished**: 7 models are still to be run." in text
    assert (
        "| discrete: joint against generation | Generation | -20.1 | -10.0 | one seed says nothing |" in text
    )
