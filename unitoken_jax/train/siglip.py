"""Training of SigLIP alone: each region of an image says what is in it.

The paper takes SigLIP from contrastive training on billions of captioned images. In a small world whose
contents are known, labels of regions teach it the same in minutes: what is where.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import reduce

from unitoken_jax.config import OptimizerConfig, SiglipConfig, SiglipTrainConfig
from unitoken_jax.model.siglip import Siglip
from unitoken_jax.train.optimizer import schedule, transformation, warmup_steps
from unitoken_jax.train.state import flatten, merge

EMPTY_WEIGHT = 0.3  # of a region with nothing in it: most are
_WARMUP_FRACTION = 0.03
_HEAD = "head/kernel"


def train_siglip(
    config: SiglipConfig,
    train: SiglipTrainConfig,
    params: dict,
    images: np.ndarray,
    labels: np.ndarray,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
) -> dict:
    """Trains SigLIP to classify regions by a linear layer on its features, which is dropped; returns params.

    A region's feature is the mean of its patches'. The loss is the cross-entropy of each property.

    Args:
        config: the network.
        train: steps, batch, learning rate and seed.
        params: the tree to start from, as "siglip" of a model's parameters is.
        images: uint8[N, S, S, 3], S the side of the crops that SigLIP reads.
        labels: int32[N, R, R, properties], what is in each of R x R regions; 0 is nothing. R divides the
            patches along a side.
        on_metrics: is called for every step, one step late, with its number and its loss, accuracy and lr.

    Raises ValueError where images are fewer than one batch.
    """
    if len(images) < train.batch:
        raise ValueError(f"{len(images)} images are fewer than one batch of {train.batch}: lower it")
    classes = [int(number) + 1 for number in labels.max((0, 1, 2))]
    program = _program(config, train, labels.shape[1], classes)
    flat = flatten(jax.tree.map(jnp.array, params))
    flat[_HEAD] = jnp.zeros((config.width, sum(classes)))
    opt_state = _optimizer(train).init(flat)
    rng = np.random.default_rng(train.seed)
    order = np.concatenate(
        [rng.permutation(len(images)) for _ in range(train.steps * train.batch // len(images) + 1)]
    )
    pending = None

    def report(step: int) -> None:
        if pending is not None and on_metrics is not None:
            on_metrics(step, {name: float(value) for name, value in pending.items()})

    for step in range(train.steps):
        batch = order[step * train.batch : (step + 1) * train.batch]
        flat, opt_state, metrics = program(flat, opt_state, step, images[batch], labels[batch])
        report(step)
        pending = metrics
    report(train.steps)
    del flat[_HEAD]
    return merge(flat, {})


def _optimizer(train: SiglipTrainConfig) -> optax.GradientTransformation:
    return transformation(
        OptimizerConfig(name="muon", newton_schulz_steps=3, clip_norm=1.0, weight_decay=train.weight_decay)
    )


def _program(
    config: SiglipConfig, train: SiglipTrainConfig, regions: int, classes: Sequence[int]
) -> Callable:
    """The compiled f(flat params, optimizer state, step, images, labels) -> (params, state, metrics)."""
    model, optimizer = Siglip(config, scan=False), _optimizer(train)
    ends, warmup = np.cumsum(classes)[:-1], warmup_steps(train.steps, _WARMUP_FRACTION)

    def loss_of(flat, images, labels):
        siglip = merge({path: leaf for path, leaf in flat.items() if path != _HEAD}, {})
        features = model.apply({"params": siglip}, images)
        patches = features.reshape(len(images), config.grid, config.grid, config.width)
        size = config.grid // regions
        features = reduce(patches, "b (h i) (w j) d -> b h w d", "mean", i=size, j=size)
        logits = jnp.split(features @ flat[_HEAD], ends, axis=-1)
        weight = jnp.where(labels[..., 0] > 0, 1.0, EMPTY_WEIGHT)
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(part, labels[..., number])
            for number, part in enumerate(logits)
        ]
        right = jnp.stack([part.argmax(-1) == labels[..., number] for number, part in enumerate(logits)]).all(
            axis=(0, 2, 3)
        )
        return jnp.sum(weight * sum(losses)) / jnp.sum(weight), jnp.mean(right)

    @jax.jit
    def step_program(flat, opt_state, step, images, labels):
        (loss, right), gradients = jax.value_and_grad(loss_of, has_aux=True)(flat, images, labels)
        updates, opt_state = optimizer.update(gradients, opt_state, flat)
        rate = train.learning_rate * schedule(step, train.steps, warmup)
        flat = {path: leaf - rate * updates[path] for path, leaf in flat.items()}
        return flat, opt_state, {"loss": loss, "right_images": right, "lr": rate}

    return step_program
