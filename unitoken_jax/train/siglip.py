"""Training of SigLIP alone: each region of an image says what is in it.

The paper takes SigLIP from contrastive training on billions of captioned images. In a small world whose
contents are known, labels of regions teach it the same in minutes: what is where.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import reduce

from unitoken_jax.config import OptimizerConfig, SiglipConfig, SiglipTrainConfig
from unitoken_jax.model.siglip import Siglip
from unitoken_jax.train.logs.one_step_late import OneStepLate
from unitoken_jax.train.optimizer import schedule, transformation, warmup_steps
from unitoken_jax.train.state import flatten, merge

EMPTY_WEIGHT = 0.3  # of a region with nothing in it: most are
_WARMUP_FRACTION = 0.03
_HEAD = "head/kernel"


def train_siglip(
    config: SiglipConfig,
    train: SiglipTrainConfig,
    params: dict,
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    classes: Sequence[int],
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
) -> dict:
    """Trains SigLIP to classify regions by a linear layer on its features, which is dropped; returns params.

    A region's feature is the mean of its patches'. The loss is the cross-entropy of each property.

    Args:
        config: the network.
        train: steps, learning rate and weight decay.
        params: the tree to start from, as "siglip" of a model's parameters is.
        batches: images uint8[B, S, S, 3], S the side of the crops that SigLIP reads, and what is in each of
            their R x R regions, int32[B, R, R, properties], 0 meaning nothing. R divides the patches along a
            side.
        classes: how many values each property has.
        on_metrics: is called for every step, one step late, with its number and its loss, right_images (the
            share of images with every region right) and lr.
    """
    program = _program(config, train, classes)
    flat = flatten(jax.tree.map(jnp.array, params))
    flat[_HEAD] = jnp.zeros((config.width, sum(classes)))
    opt_state = _optimizer(train).init(flat)
    report = OneStepLate(on_metrics)
    for step in range(train.steps):
        images, labels = next(batches)
        flat, opt_state, metrics = program(flat, opt_state, step, images, labels)
        report(metrics)
    report()
    del flat[_HEAD]
    return merge(flat, {})


def _optimizer(train: SiglipTrainConfig) -> optax.GradientTransformation:
    return transformation(
        OptimizerConfig(name="muon", newton_schulz_steps=3, clip_norm=1.0, weight_decay=train.weight_decay)
    )


def _program(config: SiglipConfig, train: SiglipTrainConfig, classes: Sequence[int]) -> Callable:
    """The compiled f(flat params, optimizer state, step, images, labels) -> (params, state, metrics)."""
    model, optimizer = Siglip(config, scan=False), _optimizer(train)
    ends, warmup = np.cumsum(classes)[:-1], warmup_steps(train.steps, _WARMUP_FRACTION)

    def loss_of(flat, images, labels):
        siglip = merge({path: leaf for path, leaf in flat.items() if path != _HEAD}, {})
        features = model.apply({"params": siglip}, images)
        patches = features.reshape(len(images), config.grid, config.grid, config.width)
        size = config.grid // labels.shape[1]
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
