"""Loss curves of a run as a PNG."""

import pathlib
import statistics
from typing import Literal

from unitoken_jax.storage.paths import expand_home
from unitoken_jax.train.logs.metrics import METRICS_FILE, read_metrics

# Each panel's title, the metrics drawn in it, and whether its scale is logarithmic.
PANELS = (
    ("loss", ("loss", "validation_loss"), True),
    ("answers and drawing", ("understanding_loss", "generation_loss"), True),
    ("the same, held out", ("validation_understanding_loss", "validation_generation_loss"), True),
    ("gradient norm", ("grad_norm",), True),
    ("learning rate", ("lr",), False),
    ("tokens a second", ("tokens_per_second",), False),
)
COLUMNS = 3
# The line styles of a panel's numbers, in order; a run has its colour.
STYLES: tuple[Literal["-"], Literal["--"]] = ("-", "--")


def draw_curves(workdirs, out, labels=None) -> pathlib.Path:
    """Draws the metrics.jsonl of one run or of several (stages) into the PNG file `out`; returns its path.

    `workdirs` is a run directory or a list of them, `labels` their names in the legend (None: the folders').
    Raises ValueError where no run has any of the numbers that PANELS name.
    """
    import matplotlib.figure

    if isinstance(workdirs, str | pathlib.Path):
        workdirs = [workdirs]
    labels = labels or [pathlib.Path(workdir).name for workdir in workdirs]
    runs = {label: read_metrics(workdir) for label, workdir in zip(labels, workdirs)}
    recorded = {
        name for rows in runs.values() for row in rows for name, value in row.items() if value is not None
    }
    panels = [panel for panel in PANELS if recorded & set(panel[1])]
    if not panels:
        raise ValueError(
            f"nothing to draw: {METRICS_FILE} in {', '.join(map(str, workdirs))} has no known number"
        )
    rows_of_panels = -(-len(panels) // COLUMNS)
    figure = matplotlib.figure.Figure(figsize=(4.6 * COLUMNS, 3.3 * rows_of_panels), layout="constrained")
    grid = figure.subplots(rows_of_panels, COLUMNS, squeeze=False).ravel()
    for axes, (title, names, logarithmic) in zip(grid, panels):
        axes.set(title=title, xlabel="step", yscale="log" if logarithmic else "linear")
        lines = [
            (rows, name, f"C{number}", style)
            for number, rows in enumerate(runs.values())
            for name, style in zip(names, STYLES)
        ]
        for line in lines:
            _draw_line(axes, *line)
        limits = axes.get_ylim()  # outliers, such as the step after a checkpoint, do not set the scale
        for rows, name, colour, _ in lines:
            points = _points(rows, name)
            if points:
                axes.plot(*zip(*points), color=colour, alpha=0.15, linewidth=0.6)
        axes.set_ylim(limits)
        axes.grid(alpha=0.3)
        styles: dict[str, Literal["-", "--"]] = dict(zip(names, STYLES))
        drawn = [(name, "0.3", style) for name, style in styles.items() if name in recorded]
        if len(drawn) > 1:
            _add_legend(axes, drawn)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    if len(runs) > 1:  # colours mean the same everywhere: one legend, in a free place if there is one
        free = grid[len(panels)] if len(grid) > len(panels) else grid[0]
        _add_legend(free, [(label, f"C{number}", "-") for number, label in enumerate(runs)])
    out = pathlib.Path(expand_home(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return out


def _points(rows: list[dict], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _add_legend(axes, entries: list[tuple[str, str, Literal["-", "--"]]]) -> None:
    """Adds a legend of `entries`, (label, colour, line style)."""
    import matplotlib.lines

    handles = [
        matplotlib.lines.Line2D([], [], color=colour, linestyle=style, label=label)
        for label, colour, style in entries
    ]
    axes.legend(handles=handles, fontsize=8)


def _draw_line(axes, rows: list[dict], name: str, colour: str, style: str) -> None:
    """The running median of `name` over a fiftieth of the run."""
    points = _points(rows, name)
    if not points:
        return
    steps, values = zip(*points)
    window = len(points) // 50 if len(points) >= 100 else 0
    smooth = [statistics.median(values[max(0, i - window) : i + 1]) for i in range(len(values))]
    marker = "." if len(points) < 20 else None
    axes.plot(steps, smooth, style, color=colour, marker=marker, linewidth=1.2)
