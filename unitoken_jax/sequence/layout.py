"""The layout of a sequence: which tokens an image becomes, and in which order they stand.

    BOS  question EOT  answer EOT ...        a question's or answer's parts: text, and images as
    begin h w  d d d NL  d d d NL  SEP  c c c c NL c c c c NL  end       (d: VQ codes, c: SigLIP features)

Which of d, SEP, c an image has depends on `SequenceConfig.encoding` and on who shows it: what is to be drawn
(an image in an answer) always has codes.

An example: an image of 32 x 16 px in a question. The discrete crop is 16 px wide and 8 px high, a VQ code
stands for 4 x 4 px and a size token counts units of 8 px, so there are two rows of four codes. The any-res
features are those of the example in anyres.py: 4 of the whole image, then two rows of both tiles.

    tokens              begin  1  2    d  d  d  d NL    d  d  d  d NL
    code_index             -1 -1 -1    0  1  2  3 -1    4  5  6  7 -1
    image_feature_index    -1 -1 -1   -1 -1 -1 -1 -1   -1 -1 -1 -1 -1

    tokens              SEP    c  c  c  c    c  c  c  c NL    c  c  c  c NL   end
    code_index           -1   -1 -1 -1 -1   -1 -1 -1 -1 -1   -1 -1 -1 -1 -1    -1
    image_feature_index  -1    0  1  2  3    4  5  8  9 -1    6  7 10 11 -1    -1

Both indices go on counting from image to image of a conversation: a second one like this has the codes 8 to
15 and the features 12 to 23.
"""

import functools
import math

import einops
import numpy as np

from unitoken_jax.config import ModelConfig
from unitoken_jax.sequence.conversation import Turn
from unitoken_jax.sequence.vocabulary import MAX_SIZE_UNITS, MODEL_CHOOSES, Vocabulary


def validate_config(config: ModelConfig, vocabulary: Vocabulary) -> None:
    """Raises ValueError where images of this size, or these codes, have no tokens."""
    validate_image_size(config, config.sequence.image_size)
    if len(vocabulary.code_ids) < config.vq.codes:
        raise ValueError(
            f"the tokenizer has {len(vocabulary.code_ids)} image codes, the VQ codebook (vq.codes) "
            f"{config.vq.codes}: they must come from the same model"
        )
    if vocabulary.size > config.decoder.vocab_size:
        raise ValueError(
            f"the tokenizer's largest id is {vocabulary.size - 1}, but decoder.vocab_size is "
            f"{config.decoder.vocab_size}: they must come from the same model"
        )


def validate_image_size(config: ModelConfig, size: tuple[int, int]) -> None:
    """Raises ValueError listing the allowed sides unless `size` = (height, width) px is one of images."""
    unit, stride = config.sequence.size_unit, config.vq.stride
    step = math.lcm(unit, stride)
    allowed = range(step, unit * MAX_SIZE_UNITS + 1, step)
    for name, side in zip(("height", "width"), size):
        if side not in allowed:
            raise ValueError(
                f"image {name} {side} px is not supported. Allowed sides (multiples of size_unit {unit} "
                f"and VQ stride {stride}): {', '.join(map(str, allowed))}"
            )


@functools.lru_cache(maxsize=32)
def image_template(
    config: ModelConfig, vocabulary: Vocabulary, size: tuple[int, int] | None = None
) -> np.ndarray:
    """int32[n] read-only: a discrete image's ids from begin to end of image, MODEL_CHOOSES where a
    code goes.

    `size` = (height, width) px, default: `config.sequence.image_size`.
    """
    height, width = size or config.sequence.image_size
    validate_config(config, vocabulary)
    validate_image_size(config, (height, width))
    unit, stride = config.sequence.size_unit, config.vq.stride
    codes = np.full((height // stride, width // stride), MODEL_CHOOSES, np.int32)
    new_lines = np.full((height // stride, 1), vocabulary.new_line, np.int32)
    rows = einops.rearrange(np.concatenate([codes, new_lines], axis=1), "row column -> (row column)")
    begin_and_size = [vocabulary.begin_of_image, *vocabulary.size_ids[[height // unit, width // unit]]]
    template = np.array([*begin_and_size, *rows, vocabulary.end_of_image], np.int32)
    template.flags.writeable = False
    return template


def has_codes(turn: Turn, config: ModelConfig) -> bool:
    """Whether images in `turn` have discrete tokens."""
    return turn.role == "answer" or config.sequence.encoding != "continuous"


def has_features(turn: Turn, config: ModelConfig) -> bool:
    """Whether images in `turn` have continuous tokens."""
    sequence = config.sequence
    return sequence.encoding != "discrete" and (turn.role == "question" or sequence.features_in_answers)
