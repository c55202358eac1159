"""What was in the steps that the guard left out, for people to look at; and when to stop over them."""

import json
import math
from collections.abc import Callable

from unitoken_jax.config import Config
from unitoken_jax.train.logs.metrics import append_lines
from unitoken_jax.train.logs.run_folder import LogFolder

SKIPPED_FILE = "skipped.jsonl"


class SkipLog:
    """Writes a line to `folder`'s skipped.jsonl for each step left out, one step late, as MetricsLog does.

    `examples` says what a global row holds (`Loader.examples`). Every process has one, as all must stop at
    the same step; `write` is for one of them.
    """

    def __init__(self, folder: LogFolder, config: Config, examples: Callable[[int], list[dict]], write: bool):
        self._path, self._place = folder.path / SKIPPED_FILE, folder.place / SKIPPED_FILE
        self._rows, self._limit = config.data.rows, config.train.skip_limit
        self._examples, self._write = examples, write
        self._waiting: tuple[int, int, dict] | None = None

    def push(self, step: int, row: int, metrics: dict) -> None:
        """Takes the metrics of `step`, whose batch begins at global row `row`, and looks at those before."""
        self.flush()
        self._waiting = (step, row, metrics)

    def flush(self) -> None:
        """Looks at what is waiting; ValueError where `train.skip_limit` steps in a row have been left out."""
        if self._waiting is None:
            return
        (step, row, metrics), self._waiting = self._waiting, None
        consecutive_skips = int(metrics["consecutive_skips"])
        if consecutive_skips == 0:
            return
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        reason = _reason(loss, norm, float(metrics["loss_limit"]), float(metrics["grad_norm_limit"]))
        if self._write:
            line = {"step": step, "reason": reason, "loss": _finite(loss), "grad_norm": _finite(norm)}
            rows = range(row, row + self._rows)
            line["examples"] = [{"row": k, **each} for k in rows for each in self._examples(k)]
            with append_lines(self._path) as file:
                file.write(json.dumps(line) + "\n")
        if consecutive_skips >= self._limit:
            raise ValueError(
                f"{consecutive_skips} steps in a row were left out, the last one, {step}, because {reason}. "
                f"Their examples are in {self._place}: look at them with `unitoken inspect FILE --row NUMBER`. If "
                "the data is right, train at lower rates (optimizer.groups) or with a longer warm-up; "
                "--config.train.spike_sigma=0 leaves out only what is not finite. The newest checkpoint is "
                "intact, and the run goes on from it."
            )


def _reason(loss: float, norm: float, loss_limit: float, norm_limit: float) -> str:
    for name, value, limit in (("loss", loss, loss_limit), ("gradient norm", norm, norm_limit)):
        if not math.isfinite(value):
            return f"the {name} is not finite"
        if value > limit:
            return f"the {name} {value:.4g} is above {limit:.4g}, what the last steps allow"
    raise AssertionError("the guard left out a step whose numbers are as they should be")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
