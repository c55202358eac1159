"""One conversation -> one Example: in training, as a prompt to continue, or only its size.

The order of tokens is in layout.py, and SequenceWriter puts it into arrays. Positions of features and codes
are integers (`image_feature_index`, `code_index`), so a sequence's size follows from its text and its images'
sizes alone (`example_size`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from unitoken_jax.batch import NO_LABEL
from unitoken_jax.config import ModelConfig
from unitoken_jax.sequence import anyres
from unitoken_jax.sequence.conversation import (
    Conversation,
    GeneratedImage,
    Turn,
    image_source,
    make_conversation,
)
from unitoken_jax.sequence.errors import ConversationError, row_errors
from unitoken_jax.sequence.example import Example, ExampleSize
from unitoken_jax.sequence.image import image_size
from unitoken_jax.sequence.layout import has_codes, has_features, image_template
from unitoken_jax.sequence.sequence_writer import CodeLookup, SequenceWriter, text_ids
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.sequence.vocabulary import Vocabulary

# What a text-to-image question says before the description (the released code's and its data's wording).
TEXT_TO_IMAGE_INSTRUCTION = "Generate an image according to the following prompt:\n"


def is_text_to_image(conversation: Conversation) -> bool:
    """One question of text alone whose answer is one image alone: what prompt dropout applies to."""
    if len(conversation.turns) != 2:
        return False
    question, answer = conversation.turns
    texts = all(isinstance(part, str) for part in question.parts)
    return texts and len(answer.parts) == 1 and not isinstance(answer.parts[0], str)


def build_example(
    conversation: Conversation,
    tokenizer: Tokenizer,
    config: ModelConfig,
    codes: CodeLookup | None = None,
    *,
    drop_prompt: bool = False,
    rng: np.random.Generator | None = None,
) -> Example:
    """The training example of `conversation`.

    Args:
      codes: VQ codes made beforehand; None leaves them to the device (`code_index`, `images`).
      drop_prompt: the answer alone, from its begin-of-image on, as guidance's unconditional stream sees it.
      rng: where the discrete crop is taken, if `config.sequence.crop` is "random"; None: the centre.
    Raises ConversationError or ImageError, beginning with the conversation's source.
    """
    writer = SequenceWriter(tokenizer, config, codes, rng)
    turns = conversation.turns
    if drop_prompt:
        if not is_text_to_image(conversation):
            raise ValueError(f"{conversation.source}: only a text-to-image prompt can be dropped")
        turns = turns[1:]
    else:
        writer.add_ids([tokenizer.vocabulary.bos])
    with row_errors(conversation.source):
        for turn in turns:
            writer.add_turn(turn)
        return writer.example()


def build_prompt(
    conversation: Conversation,
    tokenizer: Tokenizer,
    config: ModelConfig,
    codes: CodeLookup | None = None,
    *,
    image: bool = False,
    answer: Sequence[np.ndarray | GeneratedImage] = (),
) -> Example:
    """The sequence to continue: as in training up to the last question's end of turn; no labels.

    Args:
      codes: VQ codes made beforehand, as in `build_example`.
      image: add begin-of-image (after `SequenceConfig.text_before_image`), so that an image follows.
      answer: what the model has answered so far: its ids int32[n], and the images that it drew.
    Raises ConversationError or ImageError, beginning with the conversation's source.
    """
    if conversation.turns[-1].role != "question":
        raise ConversationError(f"{conversation.source}: a prompt must end with a question, not an answer")
    writer = SequenceWriter(tokenizer, config, codes, None)
    writer.add_ids([tokenizer.vocabulary.bos])
    with row_errors(conversation.source):
        for turn in conversation.turns:
            writer.add_turn(turn)
    for answered in answer:
        if isinstance(answered, GeneratedImage):
            writer.add_image(answered, Turn("answer", (answered,)))
        else:
            writer.add_ids(answered)
    if image:
        writer.add_ids(tokenizer.encode(config.sequence.text_before_image))
        writer.add_ids([tokenizer.vocabulary.begin_of_image])
    example = writer.example()
    return dataclasses.replace(example, labels=np.full_like(example.labels, NO_LABEL))


def text_to_image_question(text: str, source: str = "the prompt") -> Conversation:
    """The question for an image of this description: instruction and text.

    A `text` that begins with TEXT_TO_IMAGE_INSTRUCTION, as the released data's questions do, gets no second
    one. Raises ConversationError beginning with `source` where `text` is none.
    """
    question = TEXT_TO_IMAGE_INSTRUCTION + text.removeprefix(TEXT_TO_IMAGE_INSTRUCTION)
    return make_conversation([[question]], source)


def build_text_to_image_prompt(
    text: str, tokenizer: Tokenizer, config: ModelConfig, source: str = "the prompt"
) -> Example:
    """The text-to-image prompt of a description: `text_to_image_question`, ending in begin-of-image.

    Raises ConversationError beginning with `source`.
    """
    return build_prompt(text_to_image_question(text, source), tokenizer, config, image=True)


def unconditional_prompt_ids(vocabulary: Vocabulary) -> np.ndarray:
    """int32[1]: what guidance's unconditional stream starts with, begin-of-image alone."""
    return np.array([vocabulary.begin_of_image], np.int32)


def example_size(
    conversation: Conversation,
    tokenizer: Tokenizer,
    config: ModelConfig,
    sizes: Sequence[tuple[int, int]] | None = None,
    *,
    online: bool = True,
    drop_prompt: bool = False,
) -> ExampleSize:
    """What `build_example(...).lengths` will be, without decoding an image.

    Args:
      sizes: the images' (height, width) in px in reading order; None: read from the files' headers.
      online: VQ codes are made on the device.
      drop_prompt: as in `build_example`.
    Raises as `build_example`, except for damaged pixels.
    """
    if sizes is None:
        sizes = image_sizes(conversation)
    discrete = len(image_template(config, tokenizer.vocabulary))
    tokens, crops, images, prefix = int(not drop_prompt), 0, 0, None
    remaining = iter(sizes)
    with row_errors(conversation.source):
        for turn in conversation.turns[1:] if drop_prompt else conversation.turns:
            codes, features = has_codes(turn, config), has_features(turn, config)
            for part in turn.parts:
                if isinstance(part, str):
                    tokens += len(text_ids(part, tokenizer))
                    continue
                size = next(remaining)
                tokens += discrete if codes else 2
                images += online and codes
                if features:
                    tokens += codes
                    prefix = tokens - 1 if prefix is None else prefix  # one of them is end of image
                    tokens += len(anyres.feature_layout(*size, config.siglip, config.sequence))
                    crops += anyres.crop_count(*size, config.siglip, config.sequence)
            tokens += 1  # end of turn
    return ExampleSize(tokens, crops, images, 0 if prefix is None else tokens - prefix)


def image_sizes(conversation: Conversation) -> list[tuple[int, int]]:
    """(height, width) in px of each image, in reading order, from headers alone. Raises ImageError."""
    with row_errors(conversation.source):
        return [image_size(image_source(image)) for image in conversation.images]
