"""Lengths as the paper's stage II has them, made up where the paper gives no distribution.

Half of the samples draw an image (1,060 discrete tokens and a prompt), half read one (the same, and 3 to 5
SigLIP crops of any-resolution features, up to 3,700 tokens) with 20 to 1,500 tokens of text; a few are text
alone. Image sides: 300 to 1,600 px, aspects mostly 1 to 1.8 and rarely up to 4. Texts: log-uniform.
"""

import numpy as np

from unitoken_jax.config import ModelConfig
from unitoken_jax.model import flops
from unitoken_jax.sequence import anyres

DISCRETE = 2 + 1 + 32 * 33 + 1  # sizes, begin, codes with new-lines, end: 1,060
SIZES = 2000  # different images; the geometry of each is computed once


def paper_lengths(count: int, seed: int = 0, config: ModelConfig | None = None) -> np.ndarray:
    """int32[count, 5] in random order: the fields of `ExampleSize`, and tokens without continuous features.

    An image that is read begins its question.
    """
    config = config or ModelConfig()
    rng = np.random.default_rng(seed)
    sizes = _image_sizes(rng)
    features = np.array([len(anyres.feature_layout(*s, config.siglip, config.sequence)) for s in sizes])
    crops = np.array([anyres.crop_count(*s, config.siglip, config.sequence) for s in sizes])
    kind = rng.choice(3, count, p=[0.5, 0.47, 0.03])  # draw, read, text
    image = rng.integers(0, len(sizes), count)
    frame = 3  # BOS and two ends of turns
    table = np.zeros((count, 5), np.int32)
    table[:, 0] = frame + np.where(kind == 0, _texts(rng, count, 20, 300), _texts(rng, count, 20, 1500))
    table[:, 0] += (kind < 2) * DISCRETE
    table[:, 4] = table[:, 0]
    table[:, 0] += (kind == 1) * (1 + features[image])
    table[:, 1] = (kind == 1) * crops[image]
    table[:, 2] = kind < 2
    table[:, 3] = (kind == 1) * (table[:, 0] - 1 - DISCRETE)  # BOS; SEP is before, end of image after
    return table


def _texts(rng: np.random.Generator, count: int, low: int, high: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high + 1), count)).astype(np.int64)


def _image_sizes(rng: np.random.Generator) -> list[tuple[int, int]]:
    long = rng.integers(300, 1600, SIZES)
    aspect = np.clip(np.exp(np.abs(rng.normal(0.25, 0.3, SIZES))), 1, 4)
    short = np.maximum((long / aspect).astype(int), 64)
    tall = rng.random(SIZES) < 0.35
    return [(int(a), int(b)) if t else (int(b), int(a)) for a, b, t in zip(long, short, tall)]


def five_crop_example(model: ModelConfig, text: int = 250) -> flops.Work:
    """An image in a square any-resolution grid of 2 x 2 tiles with `text` tokens of question and answer.

    Discrete tokens first, then SEP, the base crop and the tiles with a new-line a row; half of the text is
    learnt.
    """
    h, w = (side // model.vq.stride for side in model.sequence.image_size)
    discrete = h * (w + 1) + 3  # a new-line a row, begin and two sizes
    grid = model.siglip.grid
    continuous = grid**2 + 2 * grid * (2 * grid + 1)
    prefix = discrete + 1
    return flops.example(prefix + continuous + text, text // 2, prefix, crops=5, images=1)
