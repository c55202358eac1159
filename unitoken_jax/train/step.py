"""One training step and one evaluation step, each a single compiled program."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unitoken_jax.config import Config
from unitoken_jax.model.attention import kernel_for
from unitoken_jax.model.lora import whole_kernel
from unitoken_jax.model.sharding import shard
from unitoken_jax.model.unitoken import UniTokenModel, insert_vq_tokens
from unitoken_jax.sequence.vocabulary import Vocabulary
from unitoken_jax.train.loss import LossSums, cross_entropy, image_token_table, targets
from unitoken_jax.train.optimizer import schedule, transformation, warmup_steps
from unitoken_jax.train.spike_guard import check_step
from unitoken_jax.train.state import State, merge


def make_model(config: Config, rates: dict[str, float], platform: str | None = None) -> UniTokenModel:
    """The module that computes as `config.train` says where the parameters in `rates` are trained.

    `platform` is "tpu", "gpu" or "cpu", for the attention kernel; None: what jax runs on.
    """
    settings = config.train
    kernel: str = settings.attention
    if kernel == "auto":
        kernel = kernel_for(platform or jax.default_backend(), config.model.decoder.head_dim)
    frozen_decoder = not any(path.startswith("decoder/") for path in rates)
    return UniTokenModel(
        config.model,
        jnp.dtype(settings.dtype),
        settings.remat,
        settings.scan_layers,
        kernel,
        frozen_prefix_length=config.data.row_prefix if frozen_decoder else 0,
    )


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A jitted step: calling it with (state, batch) returns (state, metrics)."""

    jitted: Any  # what jax.jit returns, of (state without its frozen part, the frozen part, batch, pace)
    pace: "Pace"

    def __call__(self, state: State, batch: Mapping) -> tuple[State, dict[str, jax.Array]]:
        after, metrics = self.jitted(dataclasses.replace(state, frozen={}), state.frozen, batch, self.pace)
        return dataclasses.replace(after, frozen=state.frozen), metrics

    def lower(self, state: State, batch: Mapping) -> jax.stages.Lowered:
        """The step for these arguments (ShapeDtypeStructs will do), ready to be compiled."""
        return self.jitted.lower(dataclasses.replace(state, frozen={}), state.frozen, batch, self.pace)


class Pace(NamedTuple):
    """How fast and how long a run learns. An argument of the compiled step, so that runs that differ in
    nothing else, as stages do, share one program of the compilation cache."""

    steps: np.float32
    warmup: np.float32
    rates: np.ndarray  # float32[rates that differ]


def make_train_step(
    model: UniTokenModel,
    config: Config,
    rates: dict[str, float],
    vocabulary: Vocabulary,
    shardings: State | None = None,
) -> "TrainStep":
    """The compiled step; the state given to it is donated, but not its frozen part.

    Its metrics are float32 scalars still on the device: `LossSums.means`, `grad_norm`, `lr` (the largest),
    `skipped`, those of `spike_guard.check_step`, and for each trained network, such as the decoder,
    `grad_norm/decoder`, `param_norm/decoder` and `lr/decoder`. Of a step that the guard leaves out, only
    `step`, `skipped` and the guard itself change. Dropout depends on (train.seed, step) and
    `train.accumulate` alone.

    Args:
        model: the module, from `make_model`.
        config: all settings.
        rates: peak learning rate of each trained parameter, from `optimizer.peak_rates`.
        vocabulary: the tokenizer's, for the ids of codes.
        shardings: where the state stays, for calls under `jax.set_mesh`; None: as jax chooses.
    """
    optimizer = transformation(config.optimizer)
    differentiate = _accumulated(make_objective(model, config, vocabulary), config.train.accumulate)

    peaks = sorted(set(rates.values()))
    number_of = {path: peaks.index(rate) for path, rate in rates.items()}

    def compiled(state: State, frozen: dict, batch: dict, pace: Pace):
        dropout = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        (loss, sums), gradients = differentiate(state.params, frozen, batch, dropout)
        norm = optax.global_norm(gradients)
        ok, guard, limits = check_step(state.guard, loss, norm, config.train.spike_sigma)
        now = schedule(state.step, pace.steps, pace.warmup) * pace.rates
        step_rates = {path: now[number] for path, number in number_of.items()}
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = {path: value - step_rates[path] * updates[path] for path, value in state.params.items()}
        after = dataclasses.replace(
            state,
            step=state.step + 1,
            skipped=state.skipped + ~ok,
            guard=guard,
            params=_choose(ok, params, state.params),
            opt_state=_choose(ok, opt_state, state.opt_state),
        )
        metrics = sums.means() | _norms(gradients, after.params, step_rates) | limits
        return after, metrics | {"grad_norm": norm, "skipped": after.skipped.astype(jnp.float32)}

    layout = None if shardings is None else (dataclasses.replace(shardings, frozen={}), None)
    steps = config.train.steps
    warmup = warmup_steps(steps, config.optimizer.warmup_fraction)
    pace = Pace(np.float32(steps), np.float32(warmup), np.array(peaks, np.float32))
    return TrainStep(jax.jit(compiled, donate_argnums=0, out_shardings=layout), pace)


def make_evaluation_step(
    model: UniTokenModel, config: Config, vocabulary: Vocabulary
) -> Callable[[State, Mapping], LossSums]:
    """sums(state, batch) -> LossSums of the batch without dropout, jitted; add them up over batches."""
    objective = make_objective(model, config, vocabulary)

    def sums(state: State, batch: Mapping) -> LossSums:
        return objective(state.params, state.frozen, batch, None)[1]

    return jax.jit(sums)


def make_objective(model: UniTokenModel, config: Config, vocabulary: Vocabulary):
    """f(trained, frozen, batch, dropout key or None, count) -> (mean loss with z-loss, LossSums)."""
    image_tokens = image_token_table(vocabulary, config.model.decoder.vocab_size)

    def objective(trained, frozen, batch, dropout, count=None):
        params = merge(trained, frozen)
        batch = insert_vq_tokens(params, config.model, vocabulary.code_ids, batch)
        hidden = model.apply(
            {"params": params},
            batch,
            deterministic=dropout is None,
            method="hidden",
            rngs=None if dropout is None else {"dropout": dropout},
        )
        return cross_entropy(
            hidden,
            whole_kernel(params["decoder"]["lm_head"]),
            batch["labels"],
            batch["segments"],
            config.optimizer.z_loss,
            config.train.loss_chunk,
            image_tokens,
            count,
        )

    return objective


def _accumulated(objective, microbatches: int):
    """f(trained, frozen, batch, dropout key) -> ((loss, LossSums), gradients), by microbatches of rows.

    Each microbatch's loss is divided by the supervised positions of the whole batch, so that their sum is
    what one pass over the batch gives.
    """
    differentiate = jax.value_and_grad(objective, has_aux=True)
    if microbatches == 1:
        return differentiate

    def split_rows(x: jax.Array) -> jax.Array:
        """[B, ...] -> [microbatches, B / microbatches, ...], with rows of every device in each."""
        x = x.reshape(len(x) // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return shard(x, None, "batch", *[None] * (x.ndim - 2))

    def differentiated(trained, frozen, batch, dropout):
        count = jnp.sum(targets(batch["labels"], batch["segments"]) >= 0).astype(jnp.float32)

        def add(carry, numbered_rows):
            number, rows = numbered_rows
            key = jax.random.fold_in(dropout, number)
            return jax.tree.map(jnp.add, carry, differentiate(trained, frozen, rows, key, count)), None

        rows = jax.tree.map(split_rows, batch)
        start = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(differentiate, trained, frozen, jax.tree.map(lambda x: x[0], rows), dropout),
        )
        return jax.lax.scan(add, start, (jnp.arange(microbatches), rows))[0]

    return differentiated


def _choose(ok: jax.Array, new, old):
    """The tree `new` where `ok` bool[] is true, else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)


def _norms(gradients: dict, params: dict, rates: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Norms and learning rate of each trained network; a path's first name is its network's ("decoder")."""
    metrics = {"lr": _largest(rates.values())}
    for network in sorted({path.split("/")[0] for path in rates}):
        paths = [path for path in rates if path.split("/")[0] == network]
        metrics[f"grad_norm/{network}"] = optax.global_norm([gradients[path] for path in paths])
        metrics[f"param_norm/{network}"] = optax.global_norm([params[path] for path in paths])
        metrics[f"lr/{network}"] = _largest(rates[path] for path in paths)
    return metrics


def _largest(numbers: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.maximum, numbers)
