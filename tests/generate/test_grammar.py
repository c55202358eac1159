"""The forced ids of an image, and back from tokens to codes."""

import numpy as np
import pytest

from unitoken_jax.config import ModelConfig, SequenceConfig, VQConfig
from unitoken_jax.generate.grammar import image_grammar
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES, Vocabulary, control_names

CONFIG = ModelConfig(
    vq=VQConfig(codes=16, channel_multipliers=(1, 2, 2)),
    sequence=SequenceConfig(size_unit=8, image_size=(8, 16)),
)


@pytest.fixture(scope="module")
def vocabulary():
    names = control_names(16)
    # A permutation, as in the published tokenizer: code and id must never be confused.
    order = np.random.default_rng(0).permutation(len(names))
    return Vocabulary.from_names({name: int(order[i]) for i, name in enumerate(names)})


def test_forced_table_spelled_out(vocabulary):
    grammar = image_grammar(CONFIG, vocabulary, height=8, width=16)
    one, two = vocabulary.size_ids[[1, 2]]
    row = [MODEL_CHOOSES] * 4 + [vocabulary.new_line]
    assert grammar.forced.tolist() == [one, two, *row, *row, vocabulary.end_of_image]
    assert grammar.forced.dtype == np.int32
    assert grammar.head.tolist() == [one, two]
    assert grammar.row_end.tolist() == [vocabulary.new_line]


def test_published_size_is_1061_tokens():
    """512 x 512 px: 2 sizes, 32 rows of 32 codes and a new line, end (README of the reference)."""
    config = ModelConfig()
    vocabulary = Vocabulary.from_names({name: i for i, name in enumerate(control_names(8192))})
    grammar = image_grammar(config, vocabulary, 512, 512)
    assert len(grammar.forced) == 2 + 32 * 33 + 1
    assert (grammar.forced == MODEL_CHOOSES).sum() == 1024


def test_codes_come_back_row_major(vocabulary):
    grammar = image_grammar(CONFIG, vocabulary, 8, 16)
    codes = np.random.default_rng(1).integers(0, 16, (3, 2, 4))
    tokens = grammar.tokens(vocabulary.code_ids[codes].reshape(3, -1))
    forced = grammar.forced != MODEL_CHOOSES
    np.testing.assert_array_equal(tokens[:, forced], np.tile(grammar.forced[forced], (3, 1)))
    np.testing.assert_array_equal(grammar.codes(tokens), codes)


def test_broken_images_are_refused(vocabulary):
    grammar = image_grammar(CONFIG, vocabulary, 8, 16)
    tokens = np.where(grammar.forced == MODEL_CHOOSES, vocabulary.code_ids[0], grammar.forced)[None]
    broken = tokens.copy()
    broken[0, 3] = vocabulary.sep
    with pytest.raises(ValueError, match=r"image 0, token 3: .* not an image code"):
        grammar.codes(broken)
    broken = tokens.copy()
    broken[0, 6] = vocabulary.code_ids[1]
    with pytest.raises(ValueError, match=r"token 6: .* not the forced id"):
        grammar.codes(broken)
    with pytest.raises(ValueError, match=r"int32\[B, 13\]"):
        grammar.codes(tokens[:, 1:])


@pytest.mark.parametrize(("height", "width"), [(8, 12), (0, 8), (8, 248), (-8, 8), (7, 8)])
def test_unsupported_sizes_list_the_allowed_ones(vocabulary, height, width):
    with pytest.raises(ValueError, match=r"Allowed sides .*: 8, 16, 24, .* 240"):
        image_grammar(CONFIG, vocabulary, height, width)
