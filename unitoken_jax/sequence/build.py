"""One conversation -> one token sequence, with where every feature, code and label goes.

    BOS  question EOT  answer EOT ...        a question's or answer's parts: text, and images as
    begin h w  d d d NL  d d d NL  SEP  c c c c NL c c c c NL  end       (d: VQ codes, c: SigLIP features)

Which of d, SEP, c an image has depends on `SequenceConfig.encoding` and on who shows it: what is to be drawn
(an image in an answer) always has codes. Positions of features and codes are integers (`image_feature_index`,
`code_index`), so a sequence's length follows from its text and its images' sizes alone (`length`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from unitoken_jax.batch import NO_INDEX, NO_LABEL
from unitoken_jax.config import ModelConfig
from unitoken_jax.sequence import anyres
from unitoken_jax.sequence.conversation import (
    Conversation,
    ConversationError,
    GeneratedImage,
    ImageFile,
    ImageLike,
    Turn,
    image_source,
    make_conversation,
)
from unitoken_jax.sequence.image import (
    ImageError,
    discrete_crop,
    image_size,
    open_image,
    siglip_crops,
)
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.sequence.vocabulary import MAX_SIZE_UNITS, Vocabulary

# What a text-to-image question says before the description (the released code's and its data's wording).
TEXT_TO_IMAGE_INSTRUCTION = "Generate an image according to the following prompt:\n"
VQ_CODE = -1  # in an image's template: a VQ code goes here

# VQ codes made beforehand: by image name, or by a function of the crop uint8[H, W, 3]; int32[h, w] each.
Codes = Mapping[str, np.ndarray] | Callable[[np.ndarray], np.ndarray]


class ExampleSize(NamedTuple):
    """What an example takes of a row."""

    tokens: int
    crops: int  # SigLIP crops
    images: int  # images whose codes are made on the device
    suffix: int  # tokens from the first continuous one on


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One sequence; fields as in `batch.py`, without the row dimension. Indices count within the example.

    tokens, labels, image_feature_index, code_index int32[n]; crops uint8[C, S, S, 3]; images
    uint8[I, H, W, 3], empty unless codes are made on the device; `tokens` and `labels` then hold code 0 where
    the codes will go.
    """

    tokens: np.ndarray
    labels: np.ndarray
    image_feature_index: np.ndarray
    code_index: np.ndarray
    crops: np.ndarray
    images: np.ndarray

    @property
    def lengths(self) -> ExampleSize:
        suffix = len(self.tokens) - self.prefix
        return ExampleSize(len(self.tokens), len(self.crops), len(self.images), suffix)

    @property
    def prefix(self) -> int:
        """Tokens before the first continuous one: nothing that stage I trains has a part in them."""
        continuous = self.image_feature_index != NO_INDEX
        return int(np.argmax(continuous)) if continuous.any() else len(self.tokens)


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
    """int32[n] read-only: a discrete image's ids from begin to end of image, CODE where a code goes.

    `size` = (height, width) px, default: `config.sequence.image_size`.
    """
    height, width = size or config.sequence.image_size
    validate_config(config, vocabulary)
    validate_image_size(config, (height, width))
    unit, stride = config.sequence.size_unit, config.vq.stride
    rows = np.full((height // stride, width // stride + 1), VQ_CODE, np.int32)
    rows[:, -1] = vocabulary.new_line
    first = [vocabulary.begin_of_image, *vocabulary.size_ids[[height // unit, width // unit]]]
    template = np.array([*first, *rows.reshape(-1), vocabulary.end_of_image], np.int32)
    template.flags.writeable = False
    return template


def has_codes(turn: Turn, config: ModelConfig) -> bool:
    """Whether images in `turn` have discrete tokens."""
    return turn.role == "answer" or config.sequence.encoding != "continuous"


def has_features(turn: Turn, config: ModelConfig) -> bool:
    """Whether images in `turn` have continuous tokens."""
    sequence = config.sequence
    return sequence.encoding != "discrete" and (turn.role == "question" or sequence.features_in_answers)


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
    codes: Codes | None = None,
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
    writer = _Writer(tokenizer, config, codes, rng, conversation.source)
    turns = conversation.turns
    if drop_prompt:
        if not is_text_to_image(conversation):
            raise ValueError(f"{conversation.source}: only a text-to-image prompt can be dropped")
        turns = turns[1:]
    else:
        writer.ids([tokenizer.vocabulary.bos])
    for turn in turns:
        writer.turn(turn)
    return writer.example()


def build_prompt(
    conversation: Conversation,
    tokenizer: Tokenizer,
    config: ModelConfig,
    codes: Codes | None = None,
    *,
    image: bool = False,
    answer: Sequence[np.ndarray | GeneratedImage] = (),
) -> Example:
    """The sequence to continue: as in training up to the last question's end of turn; no labels.

    `answer` is what the model has answered so far: its ids int32[n], and the images that it drew.
    `image` adds begin-of-image (after `SequenceConfig.text_before_image`), so that an image follows.
    Raises ConversationError or ImageError, beginning with the conversation's source.
    """
    if conversation.turns[-1].role != "question":
        raise ConversationError(f"{conversation.source}: a prompt must end with a question, not an answer")
    writer = _Writer(tokenizer, config, codes, None, conversation.source)
    writer.ids([tokenizer.vocabulary.bos])
    for turn in conversation.turns:
        writer.turn(turn)
    for part in answer:
        if isinstance(part, GeneratedImage):
            writer.image(part, Turn("answer", (part,)))
        else:
            writer.ids(part)
    if image:
        writer.ids(tokenizer.encode(config.sequence.text_before_image))
        writer.ids([tokenizer.vocabulary.begin_of_image])
    example = writer.example()
    return dataclasses.replace(example, labels=np.full_like(example.labels, NO_LABEL))


def build_text_to_image_prompt(text: str, tokenizer: Tokenizer, config: ModelConfig) -> Example:
    """The text-to-image prompt of a description: IMAGE_PROMPT + text, ending in begin-of-image.

    A `text` that begins with IMAGE_PROMPT, as the released data's questions do, gets no second one.
    """
    question = TEXT_TO_IMAGE_INSTRUCTION + text.removeprefix(TEXT_TO_IMAGE_INSTRUCTION)
    return build_prompt(make_conversation([[question]]), tokenizer, config, image=True)


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
    """`build(...).lengths` without decoding an image.

    `sizes` are the images' (height, width) in px in reading order, None reads them from the files' headers;
    `online` says that VQ codes are made on the device. Raises as `build`, except for damaged pixels.
    """
    source = conversation.source
    if sizes is None:
        sizes = image_sizes(conversation)
    discrete = len(image_template(config, tokenizer.vocabulary))
    tokens, crops, images, prefix = int(not drop_prompt), 0, 0, None
    rest = iter(sizes)
    for turn in conversation.turns[1:] if drop_prompt else conversation.turns:
        codes, features = has_codes(turn, config), has_features(turn, config)
        for part in turn.parts:
            if isinstance(part, str):
                tokens += len(text_ids(part, tokenizer, source))
                continue
            size = next(rest)
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
    return [_sized(image, conversation.source) for image in conversation.images]


def crop_count(height: int, width: int, config: ModelConfig) -> int:
    """SigLIP crops of a height x width px image that has continuous tokens."""
    return anyres.crop_count(height, width, config.siglip, config.sequence)


def text_ids(text: str, tokenizer: Tokenizer, source: str) -> list[int]:
    """Ids of users' text. Raises ConversationError where it spells a control token's name."""
    if name := tokenizer.control_name_in(text):
        raise ConversationError(
            f"{source}: the text contains {name}, the name of a control token; remove it, or write it "
            "another way (a space inside is enough)",
            "control_name",
        )
    return tokenizer.encode(text)


def _sized(image: ImageLike, source: str) -> tuple[int, int]:
    try:
        return image_size(image_source(image))
    except ImageError as error:
        raise ImageError(f"{source}: {error}", error.reason) from None


class _Writer:
    """Collects a sequence's pieces: the arrays (tokens, labels, image_feature_index, code_index) of each."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig,
        codes: Codes | None,
        rng: np.random.Generator | None,
        source: str,
    ):
        self.tokenizer, self.config, self.codes, self.rng = tokenizer, config, codes, rng
        self.vocabulary, self.source = tokenizer.vocabulary, source
        self.pieces: list[list[np.ndarray]] = []
        self.crops: list[np.ndarray] = []
        self.images: list[np.ndarray] = []
        self.features = 0  # SigLIP patches so far

    def ids(
        self,
        ids: Sequence[int] | np.ndarray,
        labels: np.ndarray | None = None,
        feature_index: np.ndarray | None = None,
        code_index: np.ndarray | None = None,
    ) -> None:
        ids = np.asarray(ids, np.int32)
        self.pieces.append(
            [
                ids,
                np.full(len(ids), NO_LABEL, np.int32) if labels is None else labels,
                np.full(len(ids), NO_INDEX, np.int32) if feature_index is None else feature_index,
                np.full(len(ids), NO_INDEX, np.int32) if code_index is None else code_index,
            ]
        )

    def turn(self, turn: Turn) -> None:
        learn = turn.role == "answer"
        for part in turn.parts:
            if isinstance(part, str):
                ids = np.array(text_ids(part, self.tokenizer, self.source), np.int32)
                self.ids(ids, ids if learn else None)
            else:
                try:
                    self.image(part, turn)
                except ImageError as error:
                    raise ImageError(f"{self.source}: {error}", error.reason) from None
        end = np.array([self.vocabulary.end_of_turn], np.int32)
        self.ids(end, end if learn else None)

    def image(self, image: ImageLike, turn: Turn) -> None:
        codes, features = has_codes(turn, self.config), has_features(turn, self.config)
        size = (image.image.height, image.image.width) if isinstance(image, GeneratedImage) else None
        template = image_template(self.config, self.vocabulary, size)
        learn = turn.role == "answer" and self.config.sequence.image_labels == "all"
        begin, end = template[:1], template[-1:]
        offline = isinstance(self.codes, Mapping) and isinstance(image, ImageFile)
        pixels = None
        if features or not offline:
            pixels = open_image(image_source(image))
        if codes:
            self._discrete(image, pixels, template[:-1], turn.role == "answer")
        else:
            self.ids(begin, begin if learn else None)
        if features and pixels is not None:
            if codes:
                sep = np.array([self.vocabulary.sep], np.int32)
                self.ids(sep, sep if self.config.sequence.supervise_sep else None)
            self._features(pixels)
        self.ids(end, end if learn else None)

    def _discrete(
        self, image: ImageLike, pixels: Image.Image | None, template: np.ndarray, answer: bool
    ) -> None:
        """begin, sizes and rows of codes; without the closing end of image."""
        place = template == VQ_CODE
        index = np.full(len(template), NO_INDEX, np.int32)
        if isinstance(image, GeneratedImage):
            codes = image.codes.reshape(-1)
        elif self.codes is None:
            count = int(place.sum())
            index[place] = np.arange(count, dtype=np.int32) + count * len(self.images)
            self.images.append(self._crop(pixels))
            codes = np.zeros(count, np.int32)
        else:
            codes = self._offline(image, pixels)
        ids = template.copy()
        ids[place] = self.vocabulary.code_ids[codes]
        labels = None
        if answer:
            all_of_it = self.config.sequence.image_labels == "all"
            labels = ids if all_of_it else np.where(place, ids, NO_LABEL).astype(np.int32)
        self.ids(ids, labels, code_index=index)

    def _crop(self, pixels: Image.Image | None) -> np.ndarray:
        assert pixels is not None, "an image without codes made beforehand is opened"
        offset = None
        if self.config.sequence.crop == "random" and self.rng is not None:
            down, right = self.rng.random(2)
            offset = float(down), float(right)
        return discrete_crop(pixels, self.config.sequence.image_size, offset)

    def _offline(self, image: ImageLike, pixels: Image.Image | None) -> np.ndarray:
        """int32[h * w] codes made beforehand, checked."""
        name = image.name if isinstance(image, ImageFile) else "the given image"
        if isinstance(self.codes, Mapping):
            if not isinstance(image, ImageFile):
                raise ImageError("VQ codes are given by file name, but an image is not a file")
            if name not in self.codes:
                raise ImageError(f"no VQ codes for {name}: run `unitoken tokenize` on this data again")
            codes = self.codes[name]
        else:
            assert self.codes is not None, "the device makes them otherwise"
            codes = self.codes(self._crop(pixels))
        codes = np.asarray(codes)
        shape = tuple(side // self.config.vq.stride for side in self.config.sequence.image_size)
        if codes.shape != shape or codes.min() < 0 or codes.max() >= self.config.vq.codes:
            raise ImageError(
                f"the VQ codes of {name} are {codes.shape}, {codes.min()} to {codes.max()}; expected "
                f"{shape}, 0 to {self.config.vq.codes - 1}: made by another model?"
            )
        return codes.reshape(-1)

    def _features(self, pixels: Image.Image) -> None:
        siglip, sequence = self.config.siglip, self.config.sequence
        layout = anyres.feature_layout(pixels.height, pixels.width, siglip, sequence)
        new_row = layout == anyres.NEW_ROW
        ids = np.where(new_row, self.vocabulary.new_line, self.vocabulary.pad)
        index = np.where(new_row, NO_INDEX, layout + self.features).astype(np.int32)
        self.ids(ids, feature_index=index)
        crops = siglip_crops(pixels, siglip, sequence)
        self.crops.append(crops)
        self.features += len(crops) * siglip.patches

    def example(self) -> Example:
        side = self.config.siglip.image_size
        height, width = self.config.sequence.image_size
        fields = [np.concatenate(column) for column in zip(*self.pieces)]
        no_crops = np.zeros((0, side, side, 3), np.uint8)
        images = np.stack(self.images) if self.images else np.zeros((0, height, width, 3), np.uint8)
        tokens, labels, features, codes = fields
        return Example(tokens, labels, features, codes, np.concatenate([no_crops, *self.crops]), images)
