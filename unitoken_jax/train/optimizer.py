"""AdamW or Muon, with learning rates by parameter path, and the paper's stages as such groups.

The learning rate follows the *step*, not the number of updates made, so a skipped update does not shift the
schedule; that is why it stands outside the optax transformation.
"""

import math
import re

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from optax import contrib

from unitoken_jax.config import OptimizerConfig, ParameterGroup
from unitoken_jax.model.lora import CONSTANTS

# SigLIP's patch and position embeddings train in no stage (published code).
NEVER_TRAINED = ParameterGroup(r"^siglip/(patch_embed|position_embed)", 0.0)


def stage_groups(stage: int) -> tuple[ParameterGroup, ...]:
    """Parameter groups of training stage 1, 2 or 3 (paper, Table 2): what trains, at which peak rate.

    1: adapter 1e-3 and ViT 1e-5, decoder frozen. 2 and 3: everything at 1e-5.
    """
    vit = ParameterGroup("^siglip/", 1e-5)
    if stage == 1:
        return (NEVER_TRAINED, vit, ParameterGroup("^adapter/", 1e-3))
    if stage in (2, 3):
        return (NEVER_TRAINED, vit, ParameterGroup("^(adapter|decoder)/", 1e-5))
    raise ValueError(f"no training stage {stage!r}: the stages are 1, 2 and 3")


def is_constant(path: str) -> bool:
    """Whether a parameter trains in no run, whatever its groups, and stays in the dtype that it comes in: the
    VQ-GAN's, which has a training of its own, and the scalars beside a LoRA pair."""
    return path.startswith("vqgan/") or bool(CONSTANTS.search(path))


def peak_rates(paths, groups: tuple[ParameterGroup, ...]) -> dict[str, float]:
    """Peak rate of each trained parameter among `paths` ("decoder/lm_head/kernel"); the others are frozen.

    The VQ-GAN is never among them: it has its own training (`train/vq.py`). Nor are the scalars beside a LoRA
    pair.
    Raises ValueError for a pattern that is no regular expression or finds nothing, and if nothing trains.
    """
    paths = sorted(path for path in paths if not is_constant(path))
    for group in groups:
        try:
            matches = any(re.search(group.pattern, path) for path in paths)
        except re.error as error:
            raise ValueError(
                f"optimizer.groups: {group.pattern!r} is no regular expression: {error}"
            ) from error
        # A model without a part may keep the stages' groups that freeze it.
        if not matches and group.learning_rate:
            raise ValueError(
                f"optimizer.groups: {group.pattern!r} finds no parameter. There are {len(paths)}, such as "
                f"{', '.join(paths[:: max(1, len(paths) // 6)])}"
            )
    rates = {}
    for path in paths:
        first = next((group for group in groups if re.search(group.pattern, path)), None)
        if first is not None and first.learning_rate:
            rates[path] = first.learning_rate
    if not rates:
        raise ValueError(
            "optimizer.groups trains no parameter: give at least one group with a learning rate, "
            "for example unitoken_jax.train.optimizer.stage_groups(2)"
        )
    return rates


def warmup_steps(steps: int, warmup_fraction: float) -> int:
    """Steps of a run in which the rates rise."""
    return round(warmup_fraction * steps)


def schedule(step: ArrayLike, steps: ArrayLike, warmup: ArrayLike) -> jax.Array:
    """float32[] in [0, 1], the factor on every peak rate: linear from 0 for `warmup` steps, then cosine to 0
    at `steps`."""
    step, steps, warmup = (jnp.asarray(number, jnp.float32) for number in (step, steps, warmup))
    rising = step / jnp.maximum(warmup, 1)
    falling = 0.5 * (1 + jnp.cos(math.pi * (step - warmup) / jnp.maximum(steps - warmup, 1)))
    return jnp.where(step < warmup, rising, falling)


def transformation(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clip by the global norm, AdamW or Muon, decoupled weight decay: what, times the rate, is subtracted.

    For params as flat dicts, path -> array. Muon (Moonlight's form, arXiv 2502.16982) moves a kernel
    [in, out] by the orthogonal factor of its momentum, scaled to the root mean square of an AdamW update, so
    that rates mean the same; norms, biases, embeddings and `lm_head` follow AdamW.
    """
    clip = optax.clip_by_global_norm(config.clip_norm)
    if config.name == "muon":
        muon = contrib.muon(
            -1.0,  # optax subtracts rates; here the train step does
            ns_steps=config.newton_schulz_steps,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
            weight_decay=config.weight_decay,
            eps=config.eps,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            mu_dtype=config.moment_dtype,
        )
        return optax.chain(clip, muon)
    return optax.chain(
        clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.moment_dtype),
        optax.add_decayed_weights(config.weight_decay),
    )


def _matrices(params: dict) -> dict:
    """Path -> the axes [in, out] of a kernel that Muon makes orthogonal, None for what follows AdamW.

    A layers axis before them counts as so many matrices.
    """
    axes = contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    return {
        path: axes if path.endswith("/kernel") and not path.endswith("lm_head/kernel") else None
        for path in params
    }
