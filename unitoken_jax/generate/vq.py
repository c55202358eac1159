"""Images <-> VQ codes, some at one time, as compiled programs of the model's VQ-GAN."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from PIL import Image

from unitoken_jax.batch import NO_INDEX
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.scheduler import BATCH
from unitoken_jax.model.layers import to_pixels
from unitoken_jax.model.unitoken import insert_codes
from unitoken_jax.sequence.example import Example


def encode_images(model: Runtime, crops: np.ndarray, batch: int = BATCH) -> np.ndarray:
    """VQ codes int32[M, h, w] of discrete crops uint8[M, H, W, 3], `batch` at one time."""
    model.require("vqgan/encoder", "reading discrete image tokens")
    return np.concatenate(list(_in_groups(model, _tokenize, np.asarray(crops, np.uint8), batch)))


def decode_codes(model: Runtime, codes: np.ndarray, batch: int = BATCH) -> list[Image.Image]:
    """Images of VQ codes int32[M, h, w], `batch` at one time."""
    model.require("vqgan/decoder", "decoding images")
    groups = _in_groups(model, _pixels, np.asarray(codes, np.int32), batch)
    return [Image.fromarray(pixels) for group in groups for pixels in group]


def encode_example_images(
    model: Runtime,
    examples: Sequence[Example],
    batch: int = BATCH,
    known: dict[bytes, np.ndarray] | None = None,
) -> list[Example]:
    """The `examples`, the codes of whose images are left to the device, with these codes in their tokens.

    An image that occurs more than once is encoded once. `known` has the codes int32[h, w] by crop's bytes
    that earlier calls made, and takes those of this call.
    """
    known = {} if known is None else known
    crops = {crop.tobytes(): crop for example in examples for crop in example.images}
    new = {key: crop for key, crop in crops.items() if key not in known}
    if new:
        known.update(zip(new, encode_images(model, np.stack(list(new.values())), batch)))
    return [
        _with_codes(example, [known[crop.tobytes()] for crop in example.images], model)
        for example in examples
    ]


def _with_codes(example: Example, codes: list[np.ndarray], model: Runtime) -> Example:
    if not codes:
        return example
    tokens, labels = insert_codes(
        example.tokens,
        example.labels,
        example.code_index,
        np.stack(codes).reshape(-1),
        model.tokenizer.vocabulary.code_ids,
    )
    return dataclasses.replace(
        example,
        tokens=tokens,
        labels=labels,
        code_index=np.full_like(example.code_index, NO_INDEX),
        images=example.images[:0],
    )


@functools.partial(jax.jit, static_argnames=("vq",))
def _tokenize(vq, params, crops):
    """Codes int32[B, h, w] of uint8[B, H, W, 3]."""
    return vq.apply({"params": params}, crops, method="tokenize")


@functools.partial(jax.jit, static_argnames=("vq",))
def _pixels(vq, params, codes):
    """uint8[B, H, W, 3] of codes int32[B, h, w]."""
    return to_pixels(vq.apply({"params": params}, codes, method="decode"))


def _in_groups(model: Runtime, program: Callable, inputs: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """The outputs of the VQ-GAN's `program` for `inputs` [M, ...], `batch` rows at one time.

    The last group is padded with zeros to the rows of a program that is compiled already (`Runtime.rows`).
    """
    for start in range(0, len(inputs), batch):
        group = inputs[start : start + batch]
        padded = np.zeros((model.rows(len(group)), *group.shape[1:]), inputs.dtype)
        padded[: len(group)] = group
        output = model.run(program, model.vq, model.vq_params, model.shard_batch(padded))
        yield model.fetch(output)[: len(group)]
