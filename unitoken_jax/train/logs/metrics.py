"""Where a run's numbers go: metrics.jsonl (one line a step, appended), TensorBoard events, Weights & Biases
where asked for, and the terminal.

Nothing here imports jax: who writes has read the numbers from the device.
"""

import hashlib
import importlib.util
import io
import json
import math
import pathlib
import sys
import time
from typing import TextIO

from unitoken_jax.storage.paths import absolute, as_path, is_remote

METRICS_FILE = "metrics.jsonl"
LINE_EVERY = 5.0  # seconds between log lines where there is no terminal


class MetricsLog:
    """Writes the metrics of one step at a time to `workdir`. Use as a context manager.

    Args:
        workdir: Local folder, created where it is missing.
        tensorboard_every: Steps between points in TensorBoard and wandb; the JSONL has every step.
        progress: The display on the terminal, or None.
        wandb: What `wandb_run` returns, or None.
    """

    def __init__(self, workdir, tensorboard_every: int = 1, progress: "Progress | None" = None, wandb=None):
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._file = append_lines(workdir / METRICS_FILE)
        self._board = _summary_writer(workdir / "tensorboard")
        self._every = max(tensorboard_every, 1)
        self._progress, self._wandb = progress, wandb

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the line of `step`. A number that is not finite becomes null: JSON has no NaN."""
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if step % self._every == 0 or "validation_loss" in metrics:
            finite = {name: value for name, value in values.items() if value is not None}
            for name, value in finite.items():
                self._board.add_scalar(name, value, step)
            if self._wandb is not None:
                self._wandb.log(finite, step=step)
        if self._progress is not None:
            self._progress.update(step, values)

    def images(self, step: int, named: dict) -> None:
        """Sends images, uint8[H, W, 3] by name, to TensorBoard."""
        for name, pixels in named.items():
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Closes the files, the wandb run and the progress display."""
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._progress is not None:
            self._progress.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def append_lines(path: pathlib.Path) -> TextIO:
    """Opens a file to append lines to; a last line that a crash has cut off is removed first."""
    file = open(path, "ab+")  # noqa: SIM115
    end = file.tell()
    while end and (file.seek(end - 1), file.read(1))[1] != b"\n":
        end -= 1
    file.truncate(end)
    return io.TextIOWrapper(file, encoding="utf-8")


def require_wandb(project: str) -> None:
    """ValueError where `config.train.wandb` asks for what is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"train.wandb is {project!r}, but wandb is not installed: pip install wandb, or leave it empty"
        )


def wandb_run(project: str, workdir, config: dict):
    """The Weights & Biases run of `workdir`, always the same one; None where `project` is empty."""
    if not project:
        return None
    import wandb

    workdir = absolute(workdir)
    run_id = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]
    folder = None if is_remote(workdir) else str(workdir)  # None: as wandb likes
    return wandb.init(
        project=project, name=workdir.name, id=run_id, resume="allow", dir=folder, config=config
    )


def _summary_writer(path: pathlib.Path):
    """The writer of TensorBoard events in the folder `path`."""
    # tensorboardX imports torch where it is installed: for seconds, and for nothing that is written here.
    unimported = "torch" not in sys.modules
    if unimported:
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it fails
    try:
        from tensorboardX import SummaryWriter
    finally:
        if unimported:
            del sys.modules["torch"]
    return SummaryWriter(str(path))


def read_metrics(workdir) -> list[dict]:
    """The rows of a run's metrics.jsonl by step. Where a resumed run wrote a step again, the later counts.

    A last line cut off by a crash is left out; any other unreadable line is a ValueError naming it.
    """
    path = as_path(workdir) / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: dict[int, dict] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[row["step"]] = {**rows.get(row["step"], {}), **row}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{path}:{number}: expected a JSON object with a step, found {line[:60]!r}"
            ) from error
    return [rows[step] for step in sorted(rows)]


class Progress:
    """A bar with time left on a terminal; elsewhere a line every few seconds."""

    def __init__(self, label: str, total: int, start: int = 0, stream=None):
        self._label, self._total, self._start = label, total, start
        self._stream = stream if stream is not None else sys.stderr
        self._began = self._said = time.monotonic()
        self._bar = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=start, desc=label, file=self._stream, dynamic_ncols=True, unit="step"
            )

    def update(self, step: int, metrics: dict) -> None:
        """`step` steps are done; of `metrics` the loss and the speed are shown."""
        shown = {
            name: f"{metrics[name]:.3f}" for name in ("loss", "psnr", "validation_loss") if metrics.get(name)
        }
        if metrics.get("tokens_per_second"):
            shown["tokens/s"] = f"{metrics['tokens_per_second']:,.0f}"
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._said >= LINE_EVERY or step == self._total:
            self._said = time.monotonic()
            steps_done = max(step - self._start, 1)
            left = (self._said - self._began) / steps_done * (self._total - step)
            numbers = "  ".join(f"{name} {value}" for name, value in shown.items())
            line = f"{self._label}: step {step} of {self._total}  {numbers}  {clock(left)} left"
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """`seconds` as "3:05" (minutes and seconds) or "1:02:03"."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
