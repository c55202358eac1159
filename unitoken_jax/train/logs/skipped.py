"""The examples of the steps that the spike guard left out, written down, and the limit on such steps."""

import json
import math
from collections.abc import Callable, Mapping

from unitoken_jax.config import Config
from unitoken_jax.train.logs.metrics import append_lines
from unitoken_jax.train.logs.run_folder import LogFolder

SKIPPED_FILE = "skipped.jsonl"


class SkipLog:
    """Writes a line to skipped.jsonl for each step that the guard left out, and stops the run over too many.

    Every process has one, as all must stop at the same step; `write` is True on one of them. `examples` says
    what a global row holds (`Loader.examples`).
    """

    def __init__(self, folder: LogFolder, config: Config, examples: Callable[[int], list[dict]], write: bool):
        self._path, self._url = folder.path / SKIPPED_FILE, folder.url / SKIPPED_FILE
        self._rows, self._limit = config.data.rows, config.train.skip_limit
        self._examples, self._write = examples, write

    def check(self, step: int, first_row: int, metrics: Mapping[str, float]) -> None:
        """Notes `step`, whose batch begins at global row `first_row`, where it was left out.

        Raises ValueError where `train.skip_limit` steps in a row have been left out.
        """
        consecutive_skips = int(metrics["consecutive_skips"])
        if consecutive_skips == 0:
            return
        loss, norm = metrics["loss"], metrics["grad_norm"]
        reason = _reason(loss, norm, metrics["loss_limit"], metrics["grad_norm_limit"])
        if self._write:
            line = {"step": step, "reason": reason, "loss": _finite(loss), "grad_norm": _finite(norm)}
            rows = range(first_row, first_row + self._rows)
            examples = [{"row": row, **example} for row in rows for example in self._examples(row)]
            with append_lines(self._path) as file:
                file.write(json.dumps(line | {"examples": examples}) + "\n")
        if consecutive_skips >= self._limit:
            raise ValueError(
                f"{consecutive_skips} steps in a row were left out, the last one, {step}, because {reason}. "
                f"Their examples are in {self._url}: look at them with `unitoken inspect FILE --row NUMBER`. "
                "If the data is right, train at lower rates (optimizer.groups) or with a longer warm-up; "
                "--config.train.spike_sigma=0 leaves out only what is not finite. The newest checkpoint is "
                "intact, and the run goes on from it."
            )


def _reason(loss: float, norm: float, loss_limit: float, norm_limit: float) -> str:
    """Why the guard left out a step with this loss and gradient norm, as the end of a sentence."""
    for name, value, limit in (("loss", loss, loss_limit), ("gradient norm", norm, norm_limit)):
        if not math.isfinite(value):
            return f"the {name} is not finite"
        if value > limit:
            return f"the {name} {value:.4g} is above {limit:.4g}, what the last steps allow"
    raise AssertionError("the guard left out a step whose numbers are as they should be")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
