"""Loss curves of a run as a PNG."""

import pathlib

from unitoken_jax.train.metrics import METRICS_FILE, read_metrics

# One panel each: title, what is drawn, logarithmic.
PANELS = (
    ("loss", ("loss", "validation_loss"), True),
    ("by task", ("understanding_loss", "generation_loss"), True),
    ("gradient norm", ("grad_norm",), True),
    ("learning rate", ("lr",), False),
    ("tokens a second", ("tokens_per_second",), False),
)


def draw_curves(workdirs, out, labels=None) -> pathlib.Path:
    """Draws metrics.jsonl of one run or several (stages), in one PNG `out`; its path.

    `workdirs` a path or paths, `labels` their names in the legend (default: the folders').
    Raises ValueError if no run has any of the numbers.
    """
    import matplotlib.figure

    if isinstance(workdirs, str | pathlib.Path):
        workdirs = [workdirs]
    labels = labels or [pathlib.Path(workdir).name for workdir in workdirs]
    runs = {label: read_metrics(workdir) for label, workdir in zip(labels, workdirs)}
    found = {
        name for rows in runs.values() for row in rows for name, value in row.items() if value is not None
    }
    panels = [panel for panel in PANELS if found & set(panel[1])]
    if not panels:
        raise ValueError(
            f"nothing to draw: {METRICS_FILE} in {', '.join(map(str, workdirs))} has no known number"
        )
    figure = matplotlib.figure.Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, (title, names, logarithmic) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for label, rows in runs.items():
            for name in names:
                _draw_line(
                    axes, rows, name, f"{label} {name}".strip() if len(runs) * len(names) > 1 else None
                )
        axes.set(title=title, xlabel="step", yscale="log" if logarithmic else "linear")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7)
    out = pathlib.Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return out


def _draw_line(axes, rows: list[dict], name: str, label: str | None) -> None:
    """The points of `name`, faint, and their running mean over a fiftieth of the run."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if not points:
        return
    steps, values = zip(*points)
    if len(points) < 100:
        axes.plot(steps, values, label=label, marker="." if len(points) < 20 else None)
        return
    window = len(points) // 50
    smooth = [
        sum(values[max(0, i - window) : i + 1]) / len(values[max(0, i - window) : i + 1])
        for i in range(len(values))
    ]
    (line,) = axes.plot(steps, smooth, label=label)
    axes.plot(steps, values, color=line.get_color(), alpha=0.2, linewidth=0.7)
