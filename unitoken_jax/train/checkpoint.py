"""Checkpoints of a run, by Orbax: asynchronous, atomic, the newest few kept, and complete each by itself.

A step's checkpoint holds every parameter (frozen ones too), the optimizer's moments, the data loader's state
(one integer) and the run's config. Orbax is used here only, as its layout changes between versions.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping

import jax

from unitoken_jax.config import Config, differences, from_dict, to_dict
from unitoken_jax.storage.atomic import write_text
from unitoken_jax.storage.paths import absolute, as_path, is_remote, literal_path
from unitoken_jax.train.state import State

CONFIG_FILE, DATA_FILE = "config.json", "data.json"
GUARD = "guard/"  # where a checkpoint has the State's `guard`
# Settings that may change when a run resumes: they do not change what is computed.
FREE_KEYS = (
    "mesh.",
    "data.workers",
    "data.index",
    "train.log_every",
    "train.validate_every",
    "train.sample",  # sample_every, sample_count, samples
    "train.profile_steps",
    "train.wandb",
    "train.save_every",
    "train.keep",  # keep_best too
    "train.remat",
    "train.attention",
    "train.accumulate",
    "train.scan_layers",
    "train.loss_chunk",
    # The guard's limits do change it; they are the way on for a run that it has stopped.
    "train.spike_sigma",
    "train.skip_limit",
)


class SaveError(OSError):
    """A checkpoint could not be written; the message says which one is intact and what to do."""


class Checkpoints:
    """The checkpoints under `workdir`/checkpoints. Use as a context manager, or call `close`.

    `keep` is how many stay; None only reads. A half-written one, of a process that was killed, does not count
    and goes when the next is saved. `leave_out_frozen`: frozen parameters are not in them, for a LoRA's base
    is there already.
    """

    def __init__(self, workdir, keep: int | None, leave_out_frozen: bool = False):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._folder = absolute(workdir) / "checkpoints"
        self._leave_out_frozen = leave_out_frozen
        self._saving: int | None = None
        self._failures: list[Exception] = []
        managers = ocp.checkpoint_managers
        writing = keep is not None
        if writing and not is_remote(self._folder):
            self._folder.parent.mkdir(parents=True, exist_ok=True)  # a link to it must lead somewhere
        self._manager = ocp.CheckpointManager(
            literal_path(absolute(workdir)) / self._folder.name,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=None if keep is None else managers.LatestN(max(keep, 1)),
                cleanup_tmp_directories=writing,
                create=writing,
                read_only=not writing,
            ),
            item_handlers={
                "state": self._watched(ocp.StandardCheckpointHandler()),
                "data": self._watched(ocp.JsonCheckpointHandler()),
                "config": self._watched(ocp.JsonCheckpointHandler()),
            },
        )
        # Orbax would ask for preemption on its own, by step and from its threads; `preemption.Preemption`
        # counts calls, and must be the only one to ask.
        self._manager.reached_preemption = lambda step: False

    def _watched(self, handler):
        """`handler`, whose failures in the background are noted in `self._failures` as they happen.

        Orbax itself reports them when the save is over, which never comes where there are other processes:
        they wait for this one.
        """
        save = handler.async_save

        async def watched(*args, **kwargs):
            return [_Watched(future, self._failures) for future in await save(*args, **kwargs) or ()]

        handler.async_save = watched
        return handler

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, state: State, data: int, config: Config) -> None:
        """Starts writing the checkpoint of `state.step`; `data` is the loader's state. No-op if it exists.

        Raises SaveError where that fails, or the save before it has.
        """
        self.wait()
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arguments = self._ocp.args
        items = arguments.Composite(
            state=arguments.StandardSave(_nested(_named(self._stored_part(state)))),
            data=arguments.JsonSave({"next": int(data)}),
            config=arguments.JsonSave(to_dict(config)),
        )
        with self._failing(step):
            self._manager.save(step, args=items, force=True)
        self._saving = step

    def _stored_part(self, state: State) -> State:
        return dataclasses.replace(state, frozen={}) if self._leave_out_frozen else state

    def check(self) -> None:
        """Raises SaveError where the save in the background has failed; never waits for it."""
        if self._saving is None:
            return
        with self._failing(self._saving):
            if self._failures:
                raise self._failures[0]
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()  # it is: says whether it went well
                self._saving = None

    def wait(self) -> None:
        """Returns when everything is on disk; SaveError where it could not be."""
        while self._saving is not None:
            self.check()
            time.sleep(0.002)

    @contextlib.contextmanager
    def _failing(self, step: int):
        """Turns whatever goes wrong while step `step` is saved into a SaveError that says what is intact."""
        try:
            yield
        except Exception as error:  # whatever a file system, tensorstore or Orbax raises
            intact = [saved for saved in self._manager.all_steps() if saved < step]  # from Orbax's memory
            newest = (
                f"The checkpoint of step {max(intact)} is intact" if intact else "There is none before it"
            )
            raise SaveError(
                f"the checkpoint of step {step} could not be written to {self._folder}: {error}\n{newest}. "
                "Make room there, or put right what is wrong, and give the same command again: it goes on "
                "from its newest checkpoint."
            ) from error

    def restore(
        self, abstract: State, step: int | None = None, frozen: dict | None = None
    ) -> tuple[State, int]:
        """(state, loader state) of `step` (default: the newest).

        `abstract` holds ShapeDtypeStructs with the shardings wanted; any mesh will do. Where checkpoints
        leave out what is frozen, the state's is `frozen`. Raises ValueError listing every array that is
        missing, surplus or of another shape, FileNotFoundError if there is none.
        """
        abstract = self._stored_part(abstract)
        step = self.latest() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise FileNotFoundError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self._folder}"
            )
        expected = _named(abstract)
        stored = _named(self._manager.item_metadata(step)["state"].tree)
        new_guard = {}
        if not any(name.startswith(GUARD) for name in stored):  # from before there was one: it starts anew
            new_guard = {name: _zeros(leaf) for name, leaf in expected.items() if name.startswith(GUARD)}
            expected = {name: leaf for name, leaf in expected.items() if name not in new_guard}
        self._check(expected, stored, step)
        arguments = self._ocp.args
        items = arguments.Composite(
            state=arguments.StandardRestore(_nested(expected)), data=arguments.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        arrays = _named(restored["state"]) | new_guard
        leaves = [arrays[name] for name in _named(abstract)]
        state = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
        if self._leave_out_frozen:
            state = dataclasses.replace(state, frozen=frozen)
        return state, restored["data"]["next"]

    def _check(self, expected: dict, stored: dict, step: int) -> None:
        """Raises ValueError listing the arrays in which the stored tree of `step` is not the expected one."""
        problems = [f"missing from the checkpoint: {name}" for name in expected if name not in stored]
        problems += [f"surplus in the checkpoint: {name}" for name in stored if name not in expected]
        for name in expected:
            if name in stored and tuple(stored[name].shape) != tuple(expected[name].shape):
                shapes = (
                    f"{tuple(stored[name].shape)} in the checkpoint, {tuple(expected[name].shape)} expected"
                )
                problems.append(f"shape of {name}: {shapes}")
        if problems:
            raise ValueError(
                f"checkpoint {self._folder / str(step)} does not fit this model and optimizer.groups:\n  "
                + "\n  ".join(problems)
            )

    def position(self) -> int | None:
        """The loader state in the newest checkpoint; None where there is none."""
        if (step := self.latest()) is None:
            return None
        arguments = self._ocp.args
        restored = self._manager.restore(step, args=arguments.Composite(data=arguments.JsonRestore()))
        return restored["data"]["next"]

    def close(self) -> None:
        """Returns when everything is on disk; raises as `wait`."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        # A save that has failed here is not over for the other processes: there is no waiting for it.
        if kind is None or not issubclass(kind, SaveError):
            self.close()


class _Watched:
    """A future of Orbax's that adds what it fails with to `failures`."""

    def __init__(self, future, failures: list[Exception]):
        self._future, self._failures = future, failures

    def result(self, timeout: float | None = None):
        try:
            return self._future.result(timeout=timeout)
        except Exception as error:
            self._failures.append(error)
            raise


def _named(tree) -> dict:
    """Leaves of any pytree by path, "params/decoder/lm_head/kernel"; a "/" within a key separates too."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_key(key) for key in path): leaf for path, leaf in leaves}


def _key(key) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"unknown kind of tree key {key!r}")


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.numpy.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)


def _nested(named: dict) -> dict:
    """The nested tree of a dict by path. Orbax makes file names of keys, which must not hold a "/"."""
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(named, sep="/")


def check_workdir(workdir, config: Config) -> None:
    """Raises ValueError if `workdir` holds another run, naming each setting that differs.

    Those in FREE_KEYS may, and the data, where a larger `data.mixture_start` says that it changes on purpose
    at the row the run has reached. A folder without config.json holds no run.
    """
    path = as_path(workdir) / CONFIG_FILE
    if path.exists():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error}): choose another --workdir") from error
        with contextlib.suppress(ValueError):  # settings it does not know had their defaults
            theirs = to_dict(from_dict(Config, theirs))
        lines = differing_settings(theirs, to_dict(config))
        differing = [line for line in lines if not line.startswith(FREE_KEYS)]
        if config.data.mixture_start > theirs.get("data", {}).get("mixture_start", 0):
            _check_row(workdir, config.data.mixture_start)
            differing = [line for line in differing if not line.startswith("data.")]
        if differing:
            if any(line.startswith("data.") for line in differing):
                differing.append(how_to_change_data(workdir))
            raise ValueError(
                f"{workdir} holds another run; its {CONFIG_FILE} differs in\n  "
                + "\n  ".join(differing)
                + "\nChoose another --workdir, set these back to resume that run, or delete the folder."
            )


def _check_row(workdir, start: int) -> None:
    """Raises ValueError unless the run in `workdir` has reached global row `start`."""
    with Checkpoints(workdir, None) as checkpoints:
        reached = checkpoints.position()
    if reached != start:
        raise ValueError(
            f"data.mixture_start is {start}, but the newest checkpoint in {workdir} is at row {reached}: set "
            "it to that row to change the data there, or leave it as it was"
        )


def how_to_change_data(workdir) -> str:
    """Tells a user in brackets how to change the data of the run in `workdir` on purpose."""
    with Checkpoints(workdir, None) as checkpoints:
        reached = checkpoints.position()
    if reached is None:
        return "(no checkpoint is there yet, so other data is another run)"
    return f"(to change the data on purpose from here on: --config.data.mixture_start={reached})"


def record_data_fingerprint(workdir, fingerprint: str, start: int) -> None:
    """Notes in `workdir`/data.json what the rows from global row `start` on are made of.

    Raises ValueError where the run noted other rows for the same start: files, bad rows or weights have
    changed, and going on would repeat and leave out examples.
    """
    path = as_path(workdir) / DATA_FILE
    ours = {"fingerprint": fingerprint, "mixture_start": start}
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        if theirs["mixture_start"] == start and theirs != ours:
            raise ValueError(
                f"the data is not what the run in {workdir} began with: a file, its bad rows or the "
                f"tokenizer has changed. Put it back, or begin another run.\n{how_to_change_data(workdir)}"
            )
    if jax.process_index() == 0:
        write_text(path, json.dumps(ours) + "\n")


def claim_workdir(workdir, config: Config) -> None:
    """Writes `workdir`/config.json, atomically. Raises as `check_workdir`."""
    check_workdir(workdir, config)
    if jax.process_index() == 0:
        path = as_path(workdir) / CONFIG_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(to_dict(config), indent=1) + "\n")


def differing_settings(theirs: Mapping, ours: Mapping) -> list[str]:
    """A line, "train.steps: 10 there, 20 here", for each setting in which two config dicts differ."""
    return [
        f"{key}: {json.dumps(there)} there, {json.dumps(here)} here"
        for key, (there, here) in differences(theirs, ours).items()
    ]
