"""Checkpoints of a run, by Orbax: asynchronous, atomic, the newest few kept, and complete each by itself.

A step's checkpoint holds every parameter (frozen ones too), the optimizer's moments, the data loader's state
(one integer) and the run's config. Orbax is used here only, as its layout changes between versions.
"""

import json
import os
import pathlib

import jax

from unitoken_jax.config import Config, to_dict
from unitoken_jax.train.state import State

CONFIG_FILE = "config.json"
# Settings that may change when a run resumes: they do not change what is computed.
FREE_KEYS = (
    "mesh.",
    "data.workers",
    "train.log_every",
    "train.validate_every",
    "train.save_every",
    "train.keep",
    "train.remat",
    "train.scan_layers",
    "train.loss_chunk",
)


class Checkpoints:
    """The checkpoints under `workdir`/checkpoints. Use as a context manager, or call `close`."""

    def __init__(self, workdir, keep: int):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._folder = pathlib.Path(workdir).absolute() / "checkpoints"
        managers = ocp.checkpoint_managers
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(preservation_policy=managers.LatestN(max(keep, 1))),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
                "config": ocp.JsonCheckpointHandler(),
            },
        )

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, state: State, data: int, config: Config) -> None:
        """Starts writing the checkpoint of `state.step`; `data` is the loader's state. No-op if it exists."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arguments = self._ocp.args
        items = arguments.Composite(
            state=arguments.StandardSave(_nested(_named(state))),
            data=arguments.JsonSave({"next": int(data)}),
            config=arguments.JsonSave(to_dict(config)),
        )
        self._manager.save(step, args=items)

    def restore(self, abstract: State, step: int | None = None) -> tuple[State, int]:
        """(state, loader state) of `step` (default: the newest).

        `abstract` holds ShapeDtypeStructs with the shardings wanted; any mesh will do. Raises ValueError
        listing every array that is missing, surplus or of another shape, FileNotFoundError if there is none.
        """
        step = self.latest() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise FileNotFoundError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self._folder}"
            )
        wanted = _named(abstract)
        self._check(wanted, step)
        arguments = self._ocp.args
        items = arguments.Composite(
            state=arguments.StandardRestore(_nested(wanted)), data=arguments.JsonRestore()
        )
        found = self._manager.restore(step, args=items)
        arrays = _named(found["state"])
        structure = jax.tree.structure(abstract)
        return jax.tree.unflatten(structure, [arrays[name] for name in wanted]), found["data"]["next"]

    def _check(self, wanted: dict, step: int) -> None:
        stored = _named(self._manager.item_metadata(step)["state"].tree)
        problems = [f"missing from the checkpoint: {name}" for name in wanted if name not in stored]
        problems += [f"surplus in the checkpoint: {name}" for name in stored if name not in wanted]
        for name in wanted:
            if name in stored and tuple(stored[name].shape) != tuple(wanted[name].shape):
                shapes = (
                    f"{tuple(stored[name].shape)} in the checkpoint, {tuple(wanted[name].shape)} expected"
                )
                problems.append(f"shape of {name}: {shapes}")
        if problems:
            raise ValueError(
                f"checkpoint {self._folder / str(step)} does not fit this model and optimizer.groups:\n  "
                + "\n  ".join(problems)
            )

    def wait(self) -> None:
        """Returns when everything is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _named(tree) -> dict:
    """Leaves of any pytree by path, "params/decoder/lm_head/kernel"; a "/" within a key separates too."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_key(key) for key in path): leaf for path, leaf in leaves}


def _key(key) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"unknown kind of tree key {key!r}")


def _nested(named: dict) -> dict:
    """Orbax makes file names of keys, so each must be one name."""
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(named, sep="/")


def check_workdir(workdir, config: Config) -> None:
    """Raises ValueError if `workdir` holds another run, naming each setting that differs.

    Those in FREE_KEYS may. A folder without config.json holds no run.
    """
    path = pathlib.Path(workdir) / CONFIG_FILE
    if path.exists():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error}): choose another --workdir") from error
        differing = [line for line in differences(theirs, to_dict(config)) if not line.startswith(FREE_KEYS)]
        if differing:
            raise ValueError(
                f"{workdir} holds another run; its {CONFIG_FILE} differs in\n  "
                + "\n  ".join(differing)
                + "\nChoose another --workdir, set these back to resume that run, or delete the folder."
            )


def claim_workdir(workdir, config: Config) -> None:
    """Writes `workdir`/config.json, atomically. Raises as `check_workdir`."""
    check_workdir(workdir, config)
    if jax.process_index() == 0:
        path = pathlib.Path(workdir) / CONFIG_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{CONFIG_FILE}.part")
        part.write_text(json.dumps(to_dict(config), indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)


def differences(theirs, ours, where: str = "") -> list[str]:
    """One line, "train.steps: 10 there, 20 here", for each setting in which two config dicts differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        prefix = f"{where}." if where else ""
        keys = [*ours, *(key for key in theirs if key not in ours)]
        lines = [differences(theirs.get(key), ours.get(key), prefix + key) for key in keys]
        return [line for part in lines for line in part]
    return [] if theirs == ours else [f"{where}: {json.dumps(theirs)} there, {json.dumps(ours)} here"]
