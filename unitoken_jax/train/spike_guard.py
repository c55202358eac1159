"""Which steps are left out: those whose loss or gradient norm is not finite, or leaps above earlier ones.

A leap is more than `sigma` standard deviations above the mean of the last accepted steps, as in the skip-step
optimizers of OLMo-core and Levanter. Everything here is pure and runs inside the compiled step.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class SpikeGuard:
    """float32[W] losses and gradient norms of the last W accepted steps, in a ring.

    `accepted` int32[]: steps ever accepted. `consecutive_skips` int32[]: steps left out since the
    last of them. All zeros at the start.
    """

    losses: jax.Array
    norms: jax.Array
    accepted: jax.Array
    consecutive_skips: jax.Array


def create(window: int) -> SpikeGuard:
    """The guard before the first step; it judges leaps from half a `window` of accepted steps on."""
    return SpikeGuard(
        jnp.zeros(window), jnp.zeros(window), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    )


def check_step(
    guard: SpikeGuard, loss: jax.Array, norm: jax.Array, sigma: float
) -> tuple[jax.Array, SpikeGuard, dict[str, jax.Array]]:
    """(bool[]: whether to take the step, the guard after it, metrics).

    `loss` and `norm` are float32[]; `sigma` 0 asks only that they be finite. Metrics: `loss_limit` and
    `grad_norm_limit`, above which a step is left out (infinite: not judged yet), and `consecutive_skips`.
    """
    loss_limit = _limit(guard.losses, guard.accepted, sigma)
    norm_limit = _limit(guard.norms, guard.accepted, sigma)
    ok = jnp.isfinite(loss) & jnp.isfinite(norm) & (loss <= loss_limit) & (norm <= norm_limit)
    slot = guard.accepted % guard.losses.size
    after = SpikeGuard(
        losses=guard.losses.at[slot].set(jnp.where(ok, loss, guard.losses[slot])),
        norms=guard.norms.at[slot].set(jnp.where(ok, norm, guard.norms[slot])),
        accepted=guard.accepted + ok,
        consecutive_skips=jnp.where(ok, 0, guard.consecutive_skips + 1),
    )
    metrics = {
        "loss_limit": loss_limit,
        "grad_norm_limit": norm_limit,
        "consecutive_skips": after.consecutive_skips,
    }
    return ok, after, {name: value.astype(jnp.float32) for name, value in metrics.items()}


def _limit(values: jax.Array, accepted: jax.Array, sigma: float) -> jax.Array:
    """float32[]: mean + sigma standard deviations of a ring's entries, infinite while there are few."""
    filled = jnp.arange(values.size) < accepted
    limit = jnp.mean(values, where=filled) + sigma * jnp.std(values, where=filled, ddof=1)
    judged = (accepted >= max(values.size // 2, 2)) & (sigma > 0)
    return jnp.where(judged, limit, jnp.inf)
