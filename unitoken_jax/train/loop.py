"""The training loop: the same for the quickstart on a laptop and 7B on a pod.

A run directory holds config.json, data.json, checkpoints/, metrics.jsonl, tensorboard/, skipped.jsonl where
a step was left out, samples/ and profile/ where asked for and, at the end, model/.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable

import jax

from unitoken_jax.checkpoint import model_directory
from unitoken_jax.config import Config, to_dict
from unitoken_jax.data.loader import Loader, Validation
from unitoken_jax.model import sharding
from unitoken_jax.model.init import init_params
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage.paths import as_path
from unitoken_jax.train import state as states
from unitoken_jax.train.checkpoint import (
    Checkpoints,
    check_workdir,
    claim_workdir,
    differences,
    record_data_fingerprint,
)
from unitoken_jax.train.logs.goodput import Goodput
from unitoken_jax.train.logs.metrics import (
    METRICS_FILE,
    MetricsLog,
    Progress,
    read_metrics,
    require_wandb,
    wandb_run,
)
from unitoken_jax.train.logs.profile import Profile
from unitoken_jax.train.logs.run_folder import LogFolder
from unitoken_jax.train.logs.samples import Samples
from unitoken_jax.train.logs.skipped import SkipLog
from unitoken_jax.train.logs.throughput import Throughput, memory
from unitoken_jax.train.loss import LossSums
from unitoken_jax.train.optimizer import peak_rates
from unitoken_jax.train.placement import check_rows, initial_state, shard_batch, shardings_of
from unitoken_jax.train.preemption import Preemption
from unitoken_jax.train.step import make_evaluation_step, make_model, make_train_step

MODEL_FOLDER = "model"
RESUMABLE = 75  # exit code of a run stopped by SIGTERM: sysexits' "try again"


class Preempted(SystemExit):
    """SIGTERM came; everything is saved, and the same command goes on from there."""

    def __init__(self):
        super().__init__(RESUMABLE)


def train(
    config: Config,
    workdir,
    *,
    params: dict | None = None,
    tokenizer: Tokenizer | None = None,
    progress: str | None = "train",
) -> states.State:
    """Trains as `config` says in run directory `workdir`, resuming from what is there; the final state.

    `workdir` may be a URL (gs://bucket/run), which hosts without a common disk need.
    Starts from `params` (nested tree) and `tokenizer` where given, else from the model directory
    `config.train.init_from`, else from random weights and `config.train.tokenizer`. `progress` labels the
    progress bar; None: silent. Writes `workdir`/model at the end. Raises ValueError for what cannot be done
    (settings, data, another run's directory) and where nothing is learnt any more (`train.skip_limit`),
    SaveError where a checkpoint could not be written, Preempted after SIGTERM on any process.
    """
    check_workdir(workdir, config)  # before anything slow
    require_wandb(config.train.wandb)
    workdir, clock = as_path(workdir), Goodput()
    mesh = sharding.make_mesh(config.mesh)
    check_rows(config, mesh)
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        logs = stack.enter_context(LogFolder(workdir))  # left last, when all is written
        if params is None or tokenizer is None:
            params, tokenizer = _start(config, params, tokenizer, mesh)
        loader = Loader(config.data, config.model, tokenizer, config.train.seed, *_process())
        stack.callback(loader.close)
        sets = config.data.validation
        validation = Validation(config.data, config.model, tokenizer, *_process()) if sets else None
        sampling = config.train.sample_every
        samples = Samples(config, tokenizer, mesh, validation, logs.path) if sampling else None
        rates = peak_rates(states.flatten(params), config.optimizer.groups)
        state, abstract = initial_state(config, params, rates, mesh)
        del params
        claim_workdir(workdir, config)
        record_data_fingerprint(workdir, loader.fingerprint(), config.data.mixture_start)
        checkpoints = stack.enter_context(Checkpoints(workdir, config.train.keep))
        clock.lap("start")
        if checkpoints.latest() is not None:
            state, position = checkpoints.restore(abstract)
            loader.restore(position)
            clock.lap("restore")
            _resume(clock, logs.path, int(state.step))
        first = int(state.step) + 1
        run = _Run(
            config,
            mesh,
            *_programs(config, mesh, rates, tokenizer.vocabulary, shardings_of(abstract)),
            loader,
            validation,
            samples,
            checkpoints,
            stack.enter_context(_open_log(config, logs, progress, first - 1)),
            logs,
            SkipLog(logs, config, loader.examples, write=jax.process_index() == 0),
            stack.enter_context(Profile(logs.path / "profile", first, config.train.profile_steps)),
            Throughput(config.model, rates, mesh.devices.flatten().tolist()),
            clock,
        )
        state = run.to_the_end(state, stack.enter_context(Preemption()))
    about = {"training": to_dict(config)}
    model_directory.save_model(workdir / MODEL_FOLDER, config.model, state.tree, tokenizer, about)
    return state


@dataclasses.dataclass
class _Run:
    """A run with all its parts in place."""

    config: Config
    mesh: jax.sharding.Mesh
    step: Callable
    evaluate: Callable
    loader: Loader
    validation: Validation | None
    samples: Samples | None
    checkpoints: Checkpoints
    log: "MetricsLog | _NoLog"
    logs: LogFolder
    skips: SkipLog
    profile: Profile
    speed: Throughput
    clock: Goodput

    def to_the_end(self, state: states.State, preemption: Preemption) -> states.State:
        """Steps, validations and checkpoints up to `config.train.steps`; Preempted when told to stop."""
        settings, clock = self.config.train, self.clock
        first = int(state.step) + 1
        for step in range(first, settings.steps + 1):
            with self.profile.begin(step):
                batch = next(self.loader)
                row = self.loader.state() - self.config.data.rows  # the batch's first
                waited = clock.lap("data")
                state, metrics = self.step(state, shard_batch(batch, self.mesh))
                compiling = clock.lap("compile") if step == first else 0.0
                counts = self.speed.count(batch)
                self.checkpoints.check()
                # Only now wait for the step before this one: the device has this one to do meanwhile.
                self.flush()
                seconds = waited + compiling + clock.lap("productive")
            self.profile.end(step, state)
            metrics |= self.speed.of(counts, seconds, waited) | memory() | self.look(step, state)
            self.log.push(step, metrics | clock.metrics())
            self.skips.push(step, row, metrics)
            stopping = preemption.reached()
            if step % settings.save_every == 0 or step == settings.steps or stopping:
                self.flush()  # a step that a checkpoint holds is never done again, so its numbers go first
                clock.lap("productive")
                self.logs.send()
                self.checkpoints.save(state, self.loader.state(), self.config)
                clock.lap("save")
            if stopping and step < settings.steps:
                raise Preempted
        return state

    def look(self, step: int, state: states.State) -> dict[str, float]:
        """Validates and makes samples where it is time to; the validation's metrics."""
        settings, metrics = self.config.train, {}
        validating = self.validation and settings.validate_every and step % settings.validate_every == 0
        sampling = self.samples and step % settings.sample_every == 0
        if validating or sampling:
            jax.block_until_ready(state)  # the step's own time is not theirs
            self.clock.lap("productive")
        if validating:
            metrics = self.validate(state)
            self.clock.lap("validation")
        if sampling:
            self.log.images(step, self.samples.make(state.tree, step))
            self.clock.lap("samples")
        return metrics

    def flush(self) -> None:
        """Writes down the last step taken."""
        self.log.flush()
        self.skips.flush()

    def validate(self, state: states.State) -> dict[str, float]:
        """One pass over the validation set: `LossSums.means` of all of it, named validation_*."""
        total = None
        for batch in self.validation:
            sums = self.evaluate(state, shard_batch(batch, self.mesh))
            total = sums if total is None else jax.tree.map(jax.numpy.add, total, sums)
        means = LossSums(*total).means()
        return {f"validation_{name}": float(means[name]) for name in means if not name.endswith("_tokens")}


def _programs(config: Config, mesh, rates, vocabulary, shardings) -> tuple[Callable, Callable]:
    """The training step and the evaluation step."""
    model = make_model(config, rates, mesh.devices.flat[0].platform)
    step = make_train_step(model, config, rates, vocabulary, shardings)
    return step, make_evaluation_step(model, config, vocabulary)


def _start(config: Config, params, tokenizer, mesh) -> tuple[dict, Tokenizer]:
    """Parameters and tokenizer to start from, where the caller brought not both."""
    settings = config.train
    if settings.init_from:
        loaded = model_directory.load_model(settings.init_from, mesh=mesh)
        _check_same_network(config, loaded.config)
        return loaded.params if params is None else params, tokenizer or loaded.tokenizer
    if tokenizer is None:
        if not settings.tokenizer:
            raise ValueError(
                "nothing to start from: set config.train.init_from to a model directory, or "
                "config.train.tokenizer to a tokenizer.json to start from random weights"
            )
        tokenizer = Tokenizer.load(settings.tokenizer)
    return init_params(config.model, settings.seed, mesh) if params is None else params, tokenizer


def _check_same_network(config: Config, stored) -> None:
    """ValueError naming each setting of a network in which the model directory is another one."""
    free = ("decoder.dropout", "vq.commitment", "sequence.", "generation.")
    lines = differences(to_dict(stored), to_dict(config.model))
    lines = [f"config.model.{line}" for line in lines if not line.startswith(free)]
    if lines:
        raise ValueError(
            f"{config.train.init_from} holds another network than config.model (there / here):\n  "
            + "\n  ".join(lines)
            + "\nSet these keys to what the model directory has."
        )


def _process() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()


def _resume(clock: Goodput, folder: pathlib.Path, step: int) -> None:
    """The clock goes on from what the processes before have written."""
    if jax.process_index() == 0 and (folder / METRICS_FILE).exists():
        clock.resume(read_metrics(folder), step)


def _open_log(config: Config, logs: LogFolder, progress: str | None, start: int):
    """The metrics' log on the first process; the others keep quiet."""
    if jax.process_index() > 0:
        return _NoLog()
    bar = Progress(progress, config.train.steps, start) if progress is not None else None
    wandb = wandb_run(config.train.wandb, logs.place, to_dict(config))
    return MetricsLog(logs.path, config.train.log_every, bar, wandb)


class _NoLog(contextlib.nullcontext):
    def __enter__(self):
        return self

    def push(self, step: int, metrics: dict) -> None:
        pass

    def flush(self) -> None:
        pass

    def images(self, step: int, named: dict) -> None:
        pass
