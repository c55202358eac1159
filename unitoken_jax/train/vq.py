"""Training of the image tokenizer alone: plain autoencoder, then codebook, then quantised.

A codebook that starts random collapses where most of an image is background: a few codes take it all. So the
first steps train without quantisation, then k-means++ spreads the codebook over what the encoder says of many
images, and codes that go unused later move to the encodings that are served worst.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from unitoken_jax.config import VQConfig, VQTrainConfig
from unitoken_jax.model.init import init_vqgan
from unitoken_jax.model.layers import to_pixels, to_unit
from unitoken_jax.model.vqgan import VQModel
from unitoken_jax.train.logs.one_step_late import OneStepLate

L1_WEIGHT = 0.1
EDGE_WEIGHT = 1.0  # of differences between neighbouring pixels: without it thin strokes stay blurred
WARMUP_STEPS = 50
_UPDATE_RMS = 0.5  # root mean square of an update, in learning rates
_ORTHOGONAL_STEPS = 3  # Newton-Schulz iterations of Muon
CODEBOOK_SAMPLES = 64  # encodings for each code that the codebook is first made of
LLOYD_STEPS = 8


class VQState(NamedTuple):
    """What the training of the image tokenizer carries from step to step."""

    params: dict
    opt_state: optax.OptState
    step: jax.Array  # int32[]
    used: jax.Array  # int32[codes]: how often each code was the nearest since the last revival


def train_vq(
    config: VQConfig,
    train: VQTrainConfig,
    images: np.ndarray | Iterator[np.ndarray],
    params: dict | None = None,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[dict, list[dict[str, float]]]:
    """Trains an image tokenizer; returns its parameters and the metrics of every step.

    The loss is L2 + 0.1 L1 on [-1, 1] pixels + L2 of the differences between neighbouring pixels (after arXiv
    1511.05440) + codebook loss + commitment (arXiv 1711.00937).

    Args:
        config: the network.
        train: steps, batch, learning rate and seed.
        images: uint8[N, H, W, 3], or an endless iterator of uint8[B, H, W, 3].
        params: the tree to start from, as "vqgan" of a model's parameters is; None: random.
        on_metrics: is called for every step, one step late, with its number and its loss, l2, psnr,
            commitment, codes_used and lr.

    Raises ValueError for images of another type, fewer than one batch, or of a size that the network's stride
    does not divide.
    """
    batches = _batches(images, train)
    if params is None:
        params = init_vqgan(config, train.seed)
    programs = VQPrograms(config, train)
    state = programs.start(params)
    history: list[dict[str, float]] = []

    def note(step: int, row: dict[str, float]) -> None:
        history.append(row)
        if on_metrics is not None:
            on_metrics(step, row)

    report = OneStepLate(note)
    for step in range(train.steps):
        batch = next(batches)
        if step == train.autoencoder_steps:
            state = programs.fill(state, batch, batches)
        state, metrics = programs.step(state, batch, jnp.float32(step >= train.autoencoder_steps))
        report(metrics)
        quantised_steps = step + 1 - train.autoencoder_steps
        revives = quantised_steps > 0 and quantised_steps % train.revive_every == 0
        if revives and step + train.revive_every < train.steps:
            state = programs.revive(state, batch)
    report()
    return state.params, history


def _batches(images, train: VQTrainConfig) -> Iterator[np.ndarray]:
    """Endless batches: of an array, each epoch in another order."""
    if not isinstance(images, np.ndarray):
        yield from images
        return
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images are {images.dtype}{list(images.shape)}; expected uint8[N, H, W, 3]")
    if len(images) < train.batch:
        raise ValueError(f"{len(images)} images are fewer than one batch of {train.batch}: lower it")
    rng = np.random.default_rng(train.seed)
    while True:
        order = rng.permutation(len(images))
        for first in range(0, len(order) - train.batch + 1, train.batch):
            yield images[order[first : first + train.batch]]


def _muon(rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon for convolution kernels, as matrices [size * size * in, out]; Adam for the rest.

    The decoder must make neighbouring pixels differ from vectors that it first repeats, which is badly
    conditioned: Adam, given the same time, stays 4 dB behind (benchmarks/RESULTS.md).
    """

    def matrices(params):
        as_matrix = contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
        return jax.tree.map(lambda leaf: as_matrix if leaf.ndim == 4 else None, params)

    return contrib.muon(
        rate,
        ns_steps=_ORTHOGONAL_STEPS,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=_UPDATE_RMS,
    )


class VQPrograms:
    """The compiled programs of the image tokenizer's training, and its learning rate."""

    def __init__(self, config: VQConfig, train: VQTrainConfig):
        self.config, self.train = config, train
        self.model = VQModel(config)
        self.rate = optax.warmup_cosine_decay_schedule(
            0.0, train.learning_rate, min(WARMUP_STEPS, train.steps // 2), max(train.steps, 1)
        )
        self.optimizer = optax.chain(optax.clip_by_global_norm(1.0), _muon(self.rate))
        self.step = jax.jit(self._step, donate_argnums=0)
        self.revive = jax.jit(self._revive)

    def start(self, params: dict) -> VQState:
        """The state before the first step, with a copy of `params`, as the step donates them."""
        params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
        unused = jnp.zeros(self.config.codes, jnp.int32)
        return VQState(params, self.optimizer.init(params), jnp.zeros((), jnp.int32), unused)

    def _losses(self, params, images, quantised):
        """(loss float32[], (metrics, codes int32[B, h, w])) of `images` uint8[B, H, W, 3].

        `quantised` float32[] is 0 while latents are decoded as they are, 1 when codes are: a number, so that
        both phases are one compiled program.
        """
        apply = functools.partial(self.model.apply, {"params": params})
        latents = apply(images, method="encode").astype(jnp.float32)
        nearest, codes = apply(latents, method="quantize")
        fixed = jax.lax.stop_gradient
        reconstruction = apply(latents + quantised * fixed(nearest - latents), method="decode")
        error = reconstruction.astype(jnp.float32) - to_unit(images, jnp.float32)
        l2, l1 = jnp.mean(jnp.square(error)), jnp.mean(jnp.abs(error))
        across, down = jnp.diff(error, axis=2), jnp.diff(error, axis=1)
        edges = jnp.mean(jnp.square(across)) + jnp.mean(jnp.square(down))
        codebook = jnp.mean(jnp.square(nearest - fixed(latents)))
        commitment = jnp.mean(jnp.square(fixed(nearest) - latents))
        loss = (
            l2
            + L1_WEIGHT * l1
            + EDGE_WEIGHT * edges
            + quantised * (codebook + self.config.commitment * commitment)
        )
        return loss, ({"loss": loss, "l2": l2, "commitment": commitment}, codes)

    def _step(self, state: VQState, images, quantised):
        """One optimizer step on `images` uint8[B, H, W, 3]: (the state after it, metrics as float32[])."""
        gradients, (metrics, codes) = jax.grad(self._losses, has_aux=True)(state.params, images, quantised)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        counts = jnp.zeros_like(state.used).at[codes.reshape(-1)].add(1)
        metrics["psnr"] = 10 * jnp.log10(4 / metrics["l2"])
        metrics["codes_used"] = jnp.sum(counts > 0)
        metrics["lr"] = self.rate(state.step)
        used = jnp.where(quantised > 0, state.used + counts, state.used)
        return VQState(optax.apply_updates(state.params, updates), opt_state, state.step + 1, used), metrics

    @functools.cached_property
    def _encode(self):
        """f(params, uint8[B, H, W, 3]) -> latents [B * h * w, embed_dim], compiled."""
        encode = functools.partial(self.model.apply, method="encode")
        return jax.jit(
            lambda params, images: encode({"params": params}, images).reshape(-1, self.config.embed_dim)
        )

    def fill(self, state: VQState, batch, batches: Iterator[np.ndarray]) -> VQState:
        """Sets the codebook to centres of the encodings of `batch` and as many more batches as it takes."""
        points = self._encode(state.params, batch)
        while len(points) < CODEBOOK_SAMPLES * self.config.codes:
            points = jnp.concatenate([points, self._encode(state.params, next(batches))])
        codebook = spread(points, self.config.codes, jax.random.key(self.train.seed), LLOYD_STEPS)
        return state._replace(params={**state.params, "codebook": codebook})

    def _revive(self, state: VQState, images) -> VQState:
        """Moves unused codes to encodings drawn by their squared distance from the nearest code."""
        encoded: Any = self.model.apply({"params": state.params}, images, method="encode")
        latents = encoded.astype(jnp.float32)
        quantized: Any = self.model.apply({"params": state.params}, latents, method="quantize")
        nearest, _ = quantized
        points = latents.reshape(-1, self.config.embed_dim)
        weight = jnp.sum(jnp.square(points - nearest.reshape(points.shape)), axis=-1)
        key = jax.random.fold_in(jax.random.key(self.train.seed), state.step)
        chosen = jax.random.categorical(key, jnp.log(weight + 1e-20), shape=(self.config.codes,))
        codebook = jnp.where((state.used == 0)[:, None], points[chosen], state.params["codebook"])
        return state._replace(params={**state.params, "codebook": codebook}, used=jnp.zeros_like(state.used))


@functools.partial(jax.jit, static_argnums=(1, 3))
def spread(points: jax.Array, number: int, key: jax.Array, lloyd_steps: int) -> jax.Array:
    """`number` centres float32[number, E] of `points` [n, E]: k-means++, then Lloyd.

    Each next centre is a point drawn by its squared distance to the centres so far, so that a crowd of equal
    points (background) gets one (Arthur & Vassilvitskii 2007). Where fewer distinct points than centres
    exist, some centres repeat.
    """
    points = points.astype(jnp.float32)
    keys = jax.random.split(key, number)
    first = points[jax.random.randint(keys[0], (), 0, len(points))]

    def add(i, carry):
        centres, distance = carry
        centre = points[jax.random.categorical(keys[i], jnp.log(distance + 1e-20))]
        return centres.at[i].set(centre), jnp.minimum(distance, jnp.sum(jnp.square(points - centre), axis=-1))

    start = (
        jnp.zeros((number, points.shape[1])).at[0].set(first),
        jnp.sum(jnp.square(points - first), axis=-1),
    )
    centres, _ = jax.lax.fori_loop(1, number, add, start)

    def lloyd(_, centres):
        distance = jnp.sum(jnp.square(centres), axis=-1) - 2 * points @ centres.T
        owner = jnp.argmin(distance, axis=-1)
        count = jnp.zeros(number).at[owner].add(1.0)
        total = jnp.zeros_like(centres).at[owner].add(points)
        return jnp.where(count[:, None] > 0, total / jnp.maximum(count, 1)[:, None], centres)

    return jax.lax.fori_loop(0, lloyd_steps, lloyd, centres)


def reconstruct(
    config: VQConfig, params: dict, images: np.ndarray, batch: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes and decodes `images` uint8[N, H, W, 3], `batch` of them at a time.

    Returns what they become, uint8[N, H, W, 3], and their codes int32[N, h, w].
    """
    model = VQModel(config)

    @jax.jit
    def reconstruct_batch(params, images):
        latents = model.apply({"params": params}, images, method="encode")
        nearest, codes = model.apply({"params": params}, latents, method="quantize")
        reconstruction = model.apply({"params": params}, nearest, method="decode")
        return to_pixels(reconstruction), codes

    batch = min(batch, len(images))
    padded = np.concatenate([images, images[: -len(images) % batch]])
    batches = [reconstruct_batch(params, padded[i : i + batch]) for i in range(0, len(padded), batch)]
    reconstructions, codes = (np.concatenate(arrays)[: len(images)] for arrays in zip(*batches))
    return reconstructions, codes


def psnr(images: np.ndarray, reconstructions: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of both sets together; uint8, peak 255."""
    error = images.astype(np.float64) - reconstructions.astype(np.float64)
    return float(10 * np.log10(255.0**2 / max(float(np.mean(error**2)), 1e-12)))
