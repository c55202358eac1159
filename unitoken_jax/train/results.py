"""What a run leaves for others to read: its model or, of LoRA pairs, its adapter.

    model/ or adapter/       after the last step or, with train.keep_best, the same as best/
    best/                    after the step with the smallest validation loss so far
    adapters/step_NNNNNNN/   at every checkpoint of a LoRA run, as many as there are checkpoints

Each is written whole, or not at all.
"""

import pathlib
import shutil
from collections.abc import Mapping

import jax

from unitoken_jax.checkpoint import model_directory
from unitoken_jax.checkpoint.adapter import IN_RUN, SETTINGS, Base, load_adapter, save_adapter
from unitoken_jax.config import Config, to_dict
from unitoken_jax.model.sharding import fetch
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage.atomic import atomic_folder
from unitoken_jax.storage.paths import is_remote
from unitoken_jax.train.state import State

MODEL_FOLDER, ADAPTER_FOLDER, BEST_FOLDER, ADAPTERS = "model", IN_RUN, "best", "adapters"
_LOSS = "validation_loss"


class Results:
    """The models or adapters of the run in `workdir`.

    Raises ValueError where the run began with another base than `config.train.init_from` is now, and where it
    is to keep the best at a URL, where nothing can be copied.
    """

    def __init__(self, workdir: pathlib.Path, config: Config, tokenizer: Tokenizer):
        self._folder, self._config, self._tokenizer = workdir, config, tokenizer
        if config.train.keep_best and is_remote(workdir):
            raise ValueError(f"train.keep_best needs a local folder, and the run is in {workdir}")
        self._base = Base.of(config.train.init_from) if config.lora.rank else None
        if self._base:
            for earlier in sorted((workdir / ADAPTERS).glob("step_*"))[-1:]:
                load_adapter(earlier).check_base(self._base)
        self._best = self._best_so_far()

    def write_last(self, state: State) -> None:
        """Writes `model` or `adapter`, of the last step or of the best that was kept."""
        name = MODEL_FOLDER if self._base is None else ADAPTER_FOLDER
        best = self._folder / BEST_FOLDER
        if not (self._config.train.keep_best and best.exists()):
            self._write(name, state, {})
        elif jax.process_index() == 0:
            with atomic_folder(self._folder / name, replace=True) as staged:
                shutil.copytree(best, staged, dirs_exist_ok=True)

    def write_checkpoint(self, state: State) -> None:
        """Writes the adapter of a checkpoint, beside it, and removes the oldest that are too many."""
        if self._base is None:
            return
        self._write(f"{ADAPTERS}/step_{int(state.step):07d}", state, {})
        if jax.process_index() == 0 and not is_remote(self._folder):
            for old in sorted((self._folder / ADAPTERS).glob("step_*"))[: -max(self._config.train.keep, 1)]:
                shutil.rmtree(old, ignore_errors=True)

    def keep_best(self, state: State, metrics: Mapping[str, float]) -> None:
        """Writes `best` where the held-out loss in `metrics` is the smallest so far, and the run keeps it."""
        loss = metrics.get(_LOSS)
        if not self._config.train.keep_best or loss is None or not loss < self._best:
            return
        self._best = loss
        self._write(BEST_FOLDER, state, {name: float(value) for name, value in metrics.items()})

    def _best_so_far(self) -> float:
        """The held-out loss of what is in `best`; infinity where there is nothing."""
        name = model_directory.MANIFEST if self._base is None else SETTINGS
        path = self._folder / BEST_FOLDER / name
        if not path.exists():
            return float("inf")
        return model_directory.read_object(path)["scores"][_LOSS]

    def _write(self, name: str, state: State, scores: dict[str, float]) -> None:
        """Writes the model or adapter `name` of `state`; every process calls this."""
        about = {"training": to_dict(self._config), "step": int(state.step), "scores": scores}
        path = self._folder / name
        if self._base is None:
            model_directory.save_model(path, self._config.model, state.tree, self._tokenizer, about)
            return
        params = {name: fetch(value) for name, value in state.params.items()}
        if jax.process_index() == 0:
            if not is_remote(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            save_adapter(path, params, self._config.lora, self._base, about)
