"""Sequences, labels and crops against a recorded run of the published PyTorch code."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.helpers.reference import REFERENCE, needs_reference
from unitoken_jax.config import (
    DecoderConfig,
    ModelConfig,
    SequenceConfig,
    SiglipConfig,
    VQConfig,
    published_sequence,
)
from unitoken_jax.sequence import build as sequence
from unitoken_jax.sequence.conversation import Conversation
from unitoken_jax.sequence.conversation_file import read_conversations
from unitoken_jax.sequence.example import Example
from unitoken_jax.sequence.image import discrete_crop, open_image, siglip_crops
from unitoken_jax.sequence.layout import image_template
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES

pytestmark = needs_reference

CONFIG = ModelConfig(
    siglip=SiglipConfig(image_size=60),
    vq=VQConfig(),
    decoder=DecoderConfig(vocab_size=16896),
    sequence=published_sequence(image_size=(64, 64)),
)


@pytest.fixture(scope="module")
def golden():
    with np.load(REFERENCE / "golden.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(REFERENCE / "tokenizer.json")


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return read_conversations(REFERENCE / "conversations.json")


def recorded_codes(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """int32[4, 4]: the VQ codes in a recorded sequence (one image)."""
    codes = tokenizer.vocabulary.codes_of_ids[tokens]
    return codes[codes >= 0].reshape(4, 4)


def build(i, golden, tokenizer, conversations, config=CONFIG) -> Example:
    tokens = golden[f"tokens_{i}"]
    codes = {p.name: recorded_codes(tokens, tokenizer) for p in conversations[i].images}
    return sequence.build_example(conversations[i], tokenizer, config, codes)


@pytest.mark.parametrize("i", range(7))
def test_tokens(i, golden, tokenizer, conversations):
    example = build(i, golden, tokenizer, conversations)
    vocabulary = tokenizer.vocabulary
    soft = example.image_feature_index >= 0
    # The recorded pre-tokenised sequence has no SEP and nothing continuous: the features' new-lines are
    # those that follow a feature.
    after_feature = np.concatenate([[False], soft[:-1]]) & (example.tokens == vocabulary.new_line)
    discrete = ~soft & ~after_feature & (example.tokens != vocabulary.sep)
    np.testing.assert_array_equal(example.tokens[discrete], golden[f"tokens_{i}"])
    labels = np.where(golden[f"labels_{i}"] == -100, -1, golden[f"labels_{i}"])
    np.testing.assert_array_equal(example.labels[discrete], labels)


@pytest.mark.parametrize("i", range(7))
def test_unified_labels(i, golden, tokenizer, conversations):
    example = build(i, golden, tokenizer, conversations)
    labels = np.where(golden[f"unified_labels_{i}"] == -100, -1, golden[f"unified_labels_{i}"])
    # The recorded text-only row is padded to the room one crop would have taken.
    padding = len(labels) - len(example.labels) if i == 6 else 0
    np.testing.assert_array_equal(np.pad(example.labels, (0, padding), constant_values=-1), labels)
    assert len(example.tokens) + padding == golden[f"length_{i}"]


@pytest.mark.parametrize("i", range(6))
def test_input_norms_place_features(i, golden, tokenizer, conversations):
    """The recorded norm of an embedding is the same wherever the same id stands, and only there."""
    example = build(i, golden, tokenizer, conversations)
    norms = golden[f"embeds_norm_{i}"]
    soft = example.image_feature_index >= 0
    for token in np.unique(example.tokens[~soft]):
        assert len(np.unique(norms[~soft & (example.tokens == token)])) == 1, token
    features = np.linalg.norm(golden[f"adapter_{i}"].reshape(-1, 8), axis=1)
    # Only 8 of 64 channels are recorded, so features are told apart by order, not value: a feature whose
    # recorded channels are large has a large norm.
    correlation = np.corrcoef(features[example.image_feature_index[soft]], norms[soft])[0, 1]
    shuffled = np.corrcoef(np.roll(features, 1)[example.image_feature_index[soft]], norms[soft])[0, 1]
    assert correlation > 0.3
    assert correlation > shuffled + 0.2


@pytest.mark.parametrize("i", range(6))
def test_siglip_crops(i, golden, conversations):
    image = open_image(conversations[i].images[0].path)
    crops = siglip_crops(image, CONFIG.siglip, CONFIG.sequence).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(crops / 127.5 - 1, golden[f"pixels_{i}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("i", [0, 1, 3])
def test_discrete_crop_is_identical(i, golden, conversations):
    image = open_image(conversations[i].images[0].path)
    np.testing.assert_array_equal(discrete_crop(image, (64, 64)), golden[f"crop_{i}"])


@pytest.mark.parametrize("i", [0, 1, 3])
def test_codes_map_by_name(i, golden, tokenizer):
    np.testing.assert_array_equal(recorded_codes(golden[f"tokens_{i}"], tokenizer), golden[f"vq_codes_{i}"])


def test_an_image_of_the_right_size_is_not_resampled(golden):
    wide = golden["vq_input_wide"]
    np.testing.assert_array_equal(discrete_crop(Image.fromarray(wide), (32, 96)), wide)


@pytest.mark.parametrize("i", range(7))
@pytest.mark.parametrize("encoding", ["unified", "discrete", "continuous"])
def test_length_needs_no_pixels(i, encoding, golden, tokenizer, conversations):
    variant = dataclasses.replace(CONFIG, sequence=SequenceConfig(encoding=encoding, image_size=(64, 64)))
    example = build(i, golden, tokenizer, conversations, variant)
    assert sequence.example_size(conversations[i], tokenizer, variant, online=False) == example.lengths


def test_image_prompt(golden, tokenizer, conversations):
    """Same ids as the recorded conversation's question; the recorded answer begins with a space token."""
    text = conversations[5].turns[0].parts[0].removeprefix(sequence.TEXT_TO_IMAGE_INSTRUCTION)
    example = sequence.build_text_to_image_prompt(text, tokenizer, CONFIG)
    recorded = golden["tokens_5"]
    question = recorded[: list(recorded).index(tokenizer.vocabulary.begin_of_image)]
    np.testing.assert_array_equal(example.tokens[:-2], question)
    np.testing.assert_array_equal(example.tokens[-2:], golden["generated_cfg1"][:2])
    drawn = dataclasses.replace(CONFIG, sequence=published_sequence(image_size=(512, 512)))
    ids = image_template(drawn, tokenizer.vocabulary)
    generated = golden["generated_cfg1"][1 : 1 + len(ids)]
    np.testing.assert_array_equal(np.where(ids == MODEL_CHOOSES, generated, ids), generated)
