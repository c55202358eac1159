"""A random UniToken of the smallest useful size, for tests of everything that uses a whole model."""

import dataclasses
import functools

import numpy as np
from PIL import Image

from unitoken_jax.config import (
    DecoderConfig,
    GenerationConfig,
    ModelConfig,
    SequenceConfig,
    SiglipConfig,
    VQConfig,
)
from unitoken_jax.sequence.tokenizer import train_tokenizer

CODES = 16
WORDS = "what is this ? a red blue green circle square left of the two three one and how many are there"
CONFIG = ModelConfig(
    siglip=SiglipConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, mlp=32),
    vq=VQConfig(
        codes=CODES,
        embed_dim=8,
        latent_channels=8,
        base_channels=8,
        channel_multipliers=(1, 1, 1),
        res_blocks=1,
        resolution=16,
        mid_attention=False,
        norm_groups=4,
    ),
    decoder=DecoderConfig(vocab_size=400, width=32, depth=2, heads=4, kv_heads=2, mlp=48),
    sequence=SequenceConfig(image_size=(16, 16), size_unit=8),
    generation=GenerationConfig(top_k=8, max_answer_tokens=12),
)


@functools.cache
def tiny_tokenizer():
    return train_tokenizer([WORDS] * 4, CODES, 400)


@functools.cache
def tiny_params() -> dict:
    """Random parameters, large enough for the chosen tokens to vary. Made without compiling anything."""
    from flax import traverse_util
    from flax.core import meta

    from unitoken_jax.model.init import abstract_params

    rng = np.random.default_rng(0)
    flat = traverse_util.flatten_dict(meta.unbox(abstract_params(CONFIG)))
    for path, leaf in flat.items():
        values = rng.normal(size=leaf.shape)
        if path[-1] == "kernel":
            values *= 1.5 / np.sqrt(np.prod(leaf.shape[-4:-1] if path[0] == "vqgan" else leaf.shape[-2]))
        elif path[-1] == "scale":
            values = 1 + 0.1 * values
        elif path[-1] == "bias":
            values *= 0.1
        flat[path] = values.astype(np.float32)
    return traverse_util.unflatten_dict(flat)


@functools.cache
def tiny_model(**sequence):
    """A UniToken with `sequence` changes to its SequenceConfig."""
    from unitoken_jax.unitoken import UniToken

    config = dataclasses.replace(CONFIG, sequence=dataclasses.replace(CONFIG.sequence, **sequence))
    return UniToken(config, tiny_params(), tiny_tokenizer())


def noise(seed: int, width: int = 24, height: int = 16) -> Image.Image:
    """An image unlike the others."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)
