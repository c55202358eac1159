"""The training loop: the same for the quickstart on a laptop and 7B on a pod.

A run directory holds config.json, data.json, checkpoints/, metrics.jsonl, tensorboard/, skipped.jsonl where
a step was left out, samples/, profile/ and best/ where asked for and, at the end, model/, or of LoRA pairs
adapter/ (and adapters/, one a checkpoint).
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax

from unitoken_jax.config import Config, to_dict
from unitoken_jax.data.loader import Loader, Validation
from unitoken_jax.model import sharding
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage.paths import as_path
from unitoken_jax.train import state as states
from unitoken_jax.train.checkpoint import (
    Checkpoints,
    check_workdir,
    claim_workdir,
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
from unitoken_jax.train.logs.throughput import SpeedMeter, StepCounts, memory
from unitoken_jax.train.loss import LossSums
from unitoken_jax.train.optimizer import peak_rates
from unitoken_jax.train.placement import check_rows, initial_state, shard_batch, shardings_of
from unitoken_jax.train.preemption import Preempted, Preemption
from unitoken_jax.train.results import Results
from unitoken_jax.train.start import check_start, starting_point
from unitoken_jax.train.step import make_evaluation_step, make_model, make_train_step


def train(
    config: Config,
    workdir,
    *,
    params: dict | None = None,
    tokenizer: Tokenizer | None = None,
    progress: str | None = "train",
) -> states.State:
    """Trains as `config` says, resuming from what is in the run directory; returns the final state.

    Writes `workdir`/model, or of LoRA pairs `workdir`/adapter, at the end. Raises ValueError for what cannot
    be done (settings, data, another run's directory) and where nothing is learnt any more
    (`train.skip_limit`), SaveError where a checkpoint could not be written, Preempted after SIGTERM or Ctrl-C
    on any process.

    Args:
        config: all settings.
        workdir: the run directory; may be a URL (gs://bucket/run), which hosts without a common disk need.
        params: the nested tree to start from; None: that of the model directory `config.train.init_from`, or
            random weights.
        tokenizer: the model's; None: that of the model directory, or `config.train.tokenizer`.
        progress: label of the progress bar; None: silent.
    """
    check_workdir(workdir, config)  # before anything slow
    require_wandb(config.train.wandb)
    workdir, clock = as_path(workdir), Goodput()
    mesh = sharding.make_mesh(config.mesh)
    check_rows(config, mesh)
    check_start(config, params)
    with jax.set_mesh(mesh), Preemption() as preemption, contextlib.ExitStack() as stack:
        folder = stack.enter_context(LogFolder(workdir))  # left last, when all is written
        params, tokenizer = starting_point(config, params, tokenizer, mesh)
        loader = Loader(config.data, config.model, tokenizer, config.train.seed, *_process())
        stack.callback(loader.close)
        sets = config.data.validation
        validation = Validation(config.data, config.model, tokenizer, *_process()) if sets else None
        sampling = config.train.sample_every
        samples = Samples(config, tokenizer, mesh, validation, folder.path) if sampling else None
        rates = peak_rates(states.flatten(params), config.optimizer.groups)
        state, abstract = initial_state(config, params, rates, mesh)
        del params
        claim_workdir(workdir, config)
        record_data_fingerprint(workdir, loader.fingerprint(), config.data.mixture_start)
        results = Results(workdir, config, tokenizer)
        checkpoints = stack.enter_context(Checkpoints(workdir, config.train.keep, bool(config.lora.rank)))
        clock.lap("start")
        if checkpoints.latest() is not None:
            state, position = checkpoints.restore(abstract, frozen=state.frozen)
            loader.restore(position)
            clock.lap("restore")
            _resume(clock, folder.path, int(state.step))
        first = int(state.step) + 1
        logs = RunLogs(
            folder=folder,
            metrics=stack.enter_context(_open_log(config, folder, progress, first - 1)),
            skips=SkipLog(folder, config, loader.examples, write=jax.process_index() == 0),
            profile=stack.enter_context(Profile(folder.path / "profile", first, config.train.profile_steps)),
            speed=SpeedMeter(config.model, rates, mesh.devices.flatten().tolist()),
            clock=clock,
        )
        programs = _programs(config, mesh, rates, tokenizer.vocabulary, shardings_of(abstract))
        preemption.listen()
        run = Run(config, mesh, programs, loader, checkpoints, logs, results, validation, samples)
        state = run.run(state, preemption)
        stack.close()  # the last checkpoint is whole before the model is written
        results.write_last(state)
    return state


class Programs(NamedTuple):
    """The compiled programs of a run: one optimizer step, and the loss of a validation batch."""

    step: Callable[[states.State, Mapping], tuple[states.State, dict[str, jax.Array]]]
    evaluate: Callable[[states.State, Mapping], LossSums]


@dataclasses.dataclass(frozen=True)
class RunLogs:
    """Where a run's numbers go: files, meters and clocks."""

    folder: LogFolder
    metrics: MetricsLog | None  # None on every process but the first
    skips: SkipLog
    profile: Profile
    speed: SpeedMeter
    clock: Goodput


class _PendingStep(NamedTuple):
    """A step that the devices may still be busy with; its metrics are on the devices."""

    step: int
    first_row: int  # the global row that its batch begins with
    counts: StepCounts
    metrics: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to start; `run` does its steps.

    Args:
        config: all settings.
        mesh: the devices.
        programs: the compiled training and evaluation steps.
        loader: this process's rows of each batch.
        checkpoints: where the state is saved.
        logs: where numbers go.
        results: where models, or adapters, are written.
        validation: the batches to validate on; None: no validation.
        samples: what to draw and answer along the way; None: nothing.
    """

    config: Config
    mesh: jax.sharding.Mesh
    programs: Programs
    loader: Loader
    checkpoints: Checkpoints
    logs: RunLogs
    results: Results
    validation: Validation | None = None
    samples: Samples | None = None

    def run(self, state: states.State, preemption: Preemption) -> states.State:
        """Steps, validations and checkpoints up to `config.train.steps`; Preempted when told to stop.

        A step's numbers are read, and its time is taken, when the next one is on its way, so that the devices
        never wait for the host. Before a validation, samples or a checkpoint they are read at once, so that
        none of these counts as time of a step.
        """
        settings, clock, profile = self.config.train, self.logs.clock, self.logs.profile
        first = int(state.step) + 1
        in_flight: list[_PendingStep] = []  # at most one
        try:
            for step in range(first, settings.steps + 1):
                with profile.begin(step):
                    batch = next(self.loader)
                    first_row = self.loader.state() - self.config.data.rows
                    clock.lap("data")
                    state, metrics = self.programs.step(state, shard_batch(batch, self.mesh))
                    if step == first:
                        clock.lap("compile")
                    counts = self.logs.speed.count(batch)
                    self.checkpoints.check()
                    self.finish(in_flight)  # the step before this one
                    in_flight.append(_PendingStep(step, first_row, counts, metrics))
                profile.end(step, state)
                if self._validates_at(step) or self._samples_at(step):
                    self.finish(in_flight, state)
                stopping = preemption.reached()
                if step % settings.save_every == 0 or step == settings.steps or stopping:
                    self.finish(in_flight)  # a step that a checkpoint holds is never done again
                    self.save(state)
                if stopping and step < settings.steps:
                    raise Preempted
        except BaseException:
            for pending in in_flight:  # done before what has gone wrong
                self.write(pending, self.measure(pending))
            raise
        return state

    def finish(self, in_flight: list[_PendingStep], state: states.State | None = None) -> None:
        """Takes the step out of `in_flight`, waits for it, writes its numbers down, and checks them.

        With `state`, the one after that step, it is also validated and sampled from where it is time to.
        """
        while in_flight:
            pending = in_flight.pop()
            numbers = self.measure(pending)
            if state is not None:
                numbers |= self.maybe_validate_and_sample(pending.step, state)
            self.write(pending, numbers)
            self.logs.skips.check(pending.step, pending.first_row, numbers)

    def measure(self, pending: _PendingStep) -> dict[str, float]:
        """Waits until the devices have done a step: its metrics, speeds and memory."""
        numbers = {name: float(value) for name, value in pending.metrics.items()}
        speeds = self.logs.speed.throughput(pending.counts, self.logs.clock.complete_step())
        return numbers | speeds | memory()

    def write(self, pending: _PendingStep, numbers: dict[str, float]) -> None:
        """Writes the row of a step to the metrics' log, on the process that has one."""
        if self.logs.metrics is not None:
            self.logs.metrics.write(pending.step, numbers | self.logs.clock.metrics())

    def save(self, state: states.State) -> None:
        """Starts writing a checkpoint of `state`, and sends the logs where they are kept elsewhere."""
        self.logs.folder.send()
        self.checkpoints.save(state, self.loader.state(), self.config)
        self.results.write_checkpoint(state)
        self.logs.clock.lap("save")

    def _validates_at(self, step: int) -> bool:
        interval = self.config.train.validate_every
        return self.validation is not None and interval > 0 and step % interval == 0

    def _samples_at(self, step: int) -> bool:
        return self.samples is not None and step % self.config.train.sample_every == 0

    def maybe_validate_and_sample(self, step: int, state: states.State) -> dict[str, float]:
        """Validates and makes samples where it is time to; the validation's metrics."""
        metrics: dict[str, float] = {}
        if self.validation is not None and self._validates_at(step):
            metrics = self.validate(self.validation, state)
            self.results.keep_best(state, metrics)
            self.logs.clock.lap("validation")
        if self.samples is not None and self._samples_at(step):
            images = self.samples.make(state.tree, step)
            if self.logs.metrics is not None:
                self.logs.metrics.images(step, images)
            self.logs.clock.lap("samples")
        return metrics

    def validate(self, batches: Validation, state: states.State) -> dict[str, float]:
        """One pass over the validation set: `LossSums.means` of all of it, named validation_*."""
        total: LossSums | None = None
        for batch in batches:
            sums = self.programs.evaluate(state, shard_batch(batch, self.mesh))
            total = sums if total is None else jax.tree.map(jax.numpy.add, total, sums)
        if total is None:
            return {}
        means = total.means()
        return {f"validation_{name}": float(means[name]) for name in means if not name.endswith("_tokens")}


def _programs(config: Config, mesh, rates, vocabulary, shardings) -> Programs:
    """The compiled training and evaluation steps of `config`."""
    model = make_model(config, rates, mesh.devices.flat[0].platform)
    step = make_train_step(model, config, rates, vocabulary, shardings)
    return Programs(step, make_evaluation_step(model, config, vocabulary))


def _process() -> tuple[int, int]:
    """(number of this process, how many there are)."""
    return jax.process_index(), jax.process_count()


def _resume(clock: Goodput, folder: pathlib.Path, step: int) -> None:
    """Adds to `clock` what earlier processes of the run have written, where this one writes metrics."""
    if jax.process_index() == 0 and (folder / METRICS_FILE).exists():
        clock.resume(read_metrics(folder), step)


@contextlib.contextmanager
def _open_log(
    config: Config, folder: LogFolder, progress: str | None, start: int
) -> Iterator[MetricsLog | None]:
    """The metrics' log on the first process; None on the others."""
    if jax.process_index() > 0:
        yield None
        return
    bar = Progress(progress, config.train.steps, start) if progress is not None else None
    wandb = wandb_run(config.train.wandb, folder.url, to_dict(config))
    with MetricsLog(folder.path, config.train.log_every, bar, wandb) as log:
        yield log
