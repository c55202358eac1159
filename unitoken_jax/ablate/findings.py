"""The paper's findings beside an ablation's: contrasts of cells over seeds, as Markdown, CSV and a figure."""

import csv
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unitoken_jax.evaluate.markdown import markdown_table

METRICS = {"general": "General", "textread": "TextRead", "generation": "Generation"}
# Tables 5 and 6 of arXiv 2504.04423: General, TextRead, GenEval. Its discrete model is Chameleon.
PAPER: dict[str, tuple[float | None, ...]] = {
    "discrete-understanding": (45.4, 28.7, None),
    "discrete-generation": (None, None, 51.2),
    "discrete-joint": (45.6, 28.4, 31.1),
    "unified-understanding": (53.2, 50.1, None),
    "unified-generation": (None, None, 51.1),
    "unified-joint": (53.3, 49.5, 49.4),
    "continuous-understanding": (None, None, None),
    "continuous-joint": (None, None, None),
    "unified-small": (49.8, 42.9, 51.3),
    "unified-small-2to1": (50.0, 43.0, 50.7),
    "unified-joint-2to1": (53.0, 49.4, 38.4),
}
# Cells that two of them are here: generation alone reads no image, so encodings do not differ in it.
_CELL_OF = dict.fromkeys(("discrete-generation", "unified-generation"), "generation")
TABLES = {
    "Table 5: encoding and tasks": tuple(PAPER)[:8],
    "Table 6: data and proportion": (
        "unified-small",
        "unified-small-2to1",
        "unified-joint",
        "unified-joint-2to1",
    ),
}
# Differences that the paper discusses, in every score that both models have.
FINDINGS: tuple[tuple[str, dict[str, int]], ...] = (
    ("unified against discrete", {"unified-understanding": 1, "discrete-understanding": -1}),
    ("unified against continuous", {"unified-understanding": 1, "continuous-understanding": -1}),
    ("discrete: joint against understanding", {"discrete-joint": 1, "discrete-understanding": -1}),
    ("discrete: joint against generation", {"discrete-joint": 1, "discrete-generation": -1}),
    ("unified: joint against understanding", {"unified-joint": 1, "unified-understanding": -1}),
    ("unified: joint against generation", {"unified-joint": 1, "unified-generation": -1}),
    ("joint: unified against discrete", {"unified-joint": 1, "discrete-joint": -1}),
    ("joint: unified against continuous", {"unified-joint": 1, "continuous-joint": -1}),
    ("less data: 2:1 against 1:1", {"unified-small-2to1": 1, "unified-small": -1}),
    ("more data: 2:1 against 1:1", {"unified-joint-2to1": 1, "unified-joint": -1}),
    (
        "2:1 against 1:1, more data against less",
        {"unified-joint-2to1": 1, "unified-joint": -1, "unified-small-2to1": -1, "unified-small": 1},
    ),
)
# The smallest difference of points that counts in the paper, whose text takes those of up to 1.7 for none.
LITTLE = 2.0
# The probability with which the true difference lies in an interval.
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Measured:
    """Points (0 to 100) of several seeds.

    `values` are the seeds' points, `half` is half of their mean's 95 % interval, nan with one seed.
    """

    values: tuple[float, ...]
    half: float = math.nan

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation of the seeds' points; nan with one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def effect(self) -> str:
        """ "up" or "down" where the interval leaves 0 out, else "none seen"."""
        if abs(self.mean) > self.half:  # never with one seed, as nothing is greater than nan
            return "up" if self.mean > 0 else "down"
        return "none seen"


def contrast(rows: Sequence[Mapping], terms: Mapping[str, int], metric: str) -> Measured | None:
    """Sum of the models' points (0 to 100) with their signs, of rows as `Ablation.scores` gives them.

    Seed by seed: runs of one seed share their starting point. None where no seed has all of them.
    """
    points = _points(rows, metric)
    models = [_CELL_OF.get(model, model) for model in terms]
    seeds = [seed for seed in sorted(points) if all(model in points[seed] for model in models)]
    if not seeds:
        return None
    signs = list(terms.values())
    values = tuple(sum(sign * points[seed][model] for sign, model in zip(signs, models)) for seed in seeds)
    half = _interval(points) * math.sqrt(sum(sign**2 for sign in signs) / len(seeds))
    return Measured(values, half if len(seeds) > 1 else math.nan)


def _points(rows: Sequence[Mapping], metric: str) -> dict[int, dict[str, float]]:
    """{seed: {cell: points from 0 to 100}} of the rows that have `metric`."""
    points: dict[int, dict[str, float]] = {}
    for row in rows:
        if metric in row:
            points.setdefault(row["seed"], {})[row["cell"]] = 100 * row[metric]
    return points


def _interval(points: Mapping[int, Mapping[str, float]]) -> float:
    """Half of the 95 % interval of one run's points, as far as they are chance.

    Chance is what is left when every model and every seed has its mean (two-way analysis of variance): a few
    seeds of one model hardly say how much it scatters, all models together do. nan with one seed or model.
    """
    from scipy.stats import t

    most_models = max(map(len, points.values()))
    # A seed that is not finished does not count.
    seeds = [seed for seed, scores in points.items() if len(scores) == most_models]
    models = set.intersection(*(set(points[seed]) for seed in seeds))
    freedom = (len(seeds) - 1) * (len(models) - 1)
    if freedom < 1:
        return math.nan
    table = np.array([[points[seed][model] for model in sorted(models)] for seed in seeds])
    residuals = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    return float(t.ppf((1 + _CONFIDENCE) / 2, freedom)) * math.sqrt(np.sum(residuals**2) / freedom)


def claimed(terms: Mapping[str, int], metric: str) -> float | None:
    """The sum of the paper's points with the signs of `terms`; None where it lacks one of them."""
    column = tuple(METRICS).index(metric)
    total = 0.0
    for model, sign in terms.items():
        if (points := PAPER[model][column]) is None:
            return None
        total += sign * points
    return round(total, 1)


def verdict(paper: float | None, here: Measured) -> str:
    """Whether the difference measured here agrees with the paper's, in a few words."""
    if paper is None:
        return "not in the paper"
    if len(here.values) < 2:
        return "one seed says nothing"
    effect = "none seen" if abs(paper) < LITTLE else "up" if paper > 0 else "down"
    if here.effect == "none seen":
        return "none seen there nor here" if effect == here.effect else "not seen here"
    return "agrees" if effect == here.effect else "disagrees"


def write(out: Path, rows: Sequence[Mapping]) -> Path:
    """Writes findings.md (its path), scores.csv and ablation.png of `Ablation.scores` to folder `out`."""
    with (out / "scores.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["seed", "cell", *METRICS, "steps", "seconds"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, out / "ablation.png")
    path = out / "findings.md"
    path.write_text("\n".join(lines(rows)) + "\n", encoding="utf-8")
    return path


def lines(rows: Sequence[Mapping]) -> list[str]:
    """Markdown: both tables, then every finding beside the paper's."""
    seeds = len({row["seed"] for row in rows})
    missing = seeds * len({_CELL_OF.get(model, model) for model in PAPER}) - len(rows)
    unfinished = [f"**Not finished**: {missing} models are still to be run.", ""] if missing else []
    text = [
        "# The paper's findings, here",
        "",
        *unfinished,
        f"Points of 100: mean and standard deviation of {seeds} seeds. The paper's, in brackets, are of",
        "other benchmarks (Generation: GenEval): compare differences, not numbers. A model that only draws",
        "reads no images: here it is the same one for both encodings.",
    ]
    for title, models in TABLES.items():
        trained = []
        for model in models:
            steps = {row["steps"] for row in rows if row["cell"] == _CELL_OF.get(model, model)}
            if steps:
                scores = [
                    _score(contrast(rows, {model: 1}, metric), claimed({model: 1}, metric))
                    for metric in METRICS
                ]
                trained.append((model, *scores, max(steps)))
        text += ["", f"## {title}", "", markdown_table(("model", *METRICS.values(), "steps"), trained)]
    text += [
        "",
        "## Differences",
        "",
        "Mean over the seeds of the difference between runs that share a starting point, with its 95 %",
        "interval: chance is what all runs scatter by when each model and each seed has its mean (two-way",
        "analysis of variance, t distribution). Questions and prompts are the same for all seeds.",
        "",
    ]
    differences = []
    for name, terms in FINDINGS:
        for metric, label in METRICS.items():
            here, paper = contrast(rows, terms, metric), claimed(terms, metric)
            if here is not None:
                claim = "" if paper is None else f"{paper:+.1f}"
                measured = _with(f"{here.mean:+.1f}", here.half)
                differences.append((name, label, claim, measured, verdict(paper, here)))
    return [
        *text,
        markdown_table(("difference", "in", "paper", "here", ""), differences),
        "",
        f"None seen: in the paper under {LITTLE:.0f} points, as in its text; here if the interval holds 0.",
        "That does not say that there is none: the interval says how large it may be.",
    ]


def _score(here: Measured | None, paper: float | None) -> str:
    """A cell of a table: the mean, its spread, and the paper's points in brackets."""
    if here is None:
        return "-"
    return _with(f"{here.mean:.1f}", here.spread) + ("" if paper is None else f" ({paper})")


def _with(number: str, error: float) -> str:
    """`number` with its error, where there is one."""
    return number if math.isnan(error) else f"{number} ± {error:.1f}"


def draw(rows: Sequence[Mapping], out: Path) -> None:
    """Draws a panel for each table and metric: dots are seeds, bars their means, diamonds the paper."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(13, 11), layout="constrained")
    widths = [len(models) for models in TABLES.values()]
    panels = figure.subplots(len(METRICS), len(TABLES), squeeze=False, width_ratios=widths)
    for line, (metric, label) in zip(panels, METRICS.items()):
        for axes, (title, models) in zip(line, TABLES.items()):
            _draw_panel(axes, rows, models, metric)
            axes.set(ylim=(0, 102), ylabel=label, title=title if metric == "general" else "")
    figure.suptitle("Bars: mean here; dots: seeds; diamonds: the paper, on its own benchmarks", fontsize=10)
    figure.savefig(out, dpi=100)


def _draw_panel(axes, rows: Sequence[Mapping], models: Sequence[str], metric: str) -> None:
    """Draws what `models` score in `metric`, as far as they are finished."""
    shown = [(model, here) for model in models if (here := contrast(rows, {model: 1}, metric)) is not None]
    for x, (model, here) in enumerate(shown):
        axes.bar(x, here.mean, 0.6, color=_COLOURS[model.split("-")[0]], alpha=0.45)
        axes.plot([x] * len(here.values), here.values, "k.", markersize=7, alpha=0.7)
        if (paper := claimed({model: 1}, metric)) is not None:
            axes.plot(x, paper, "D", color="crimson", fillstyle="none")
    axes.set_xticks(range(len(shown)), [model.replace("-", "\n", 1) for model, _ in shown], fontsize=8)
    axes.grid(axis="y", alpha=0.3)


# Colour of a model's bar, by the first word of its name.
_COLOURS = {"discrete": "C1", "unified": "C0", "continuous": "C2"}
