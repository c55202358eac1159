"""Writing one sequence, piece after piece: text, control tokens, and images as `layout` says."""

from collections.abc import Callable, Mapping, Sequence

import einops
import numpy as np
from PIL import Image

from unitoken_jax.batch import NO_INDEX, NO_LABEL
from unitoken_jax.config import ModelConfig
from unitoken_jax.sequence import anyres
from unitoken_jax.sequence.conversation import GeneratedImage, ImageFile, ImageLike, Turn, image_source
from unitoken_jax.sequence.errors import ConversationError
from unitoken_jax.sequence.example import Example
from unitoken_jax.sequence.image import ImageError, discrete_crop, open_image, siglip_crops
from unitoken_jax.sequence.layout import has_codes, has_features, image_template
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES

# VQ codes made beforehand: by image name, or by a function of the crop uint8[H, W, 3]; int32[h, w] each.
CodeLookup = Mapping[str, np.ndarray] | Callable[[np.ndarray], np.ndarray]


def text_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of users' text. Raises ConversationError where it spells a control token's name."""
    if name := tokenizer.control_name_in(text):
        raise ConversationError(
            f"the text contains {name}, the name of a control token; remove it, or write it "
            "another way (a space inside is enough)",
            "control_name",
        )
    return tokenizer.encode(text)


class SequenceWriter:
    """Collects a sequence's pieces: the arrays (tokens, labels, image_feature_index, code_index) of each.

    What a part of a conversation is learnt from, and which indices it gets, is decided here.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig,
        codes: CodeLookup | None,
        rng: np.random.Generator | None,
    ):
        """Begins an empty sequence.

        Args:
          codes: VQ codes made beforehand; None leaves them to the device.
          rng: where random discrete crops are taken; None: the centre.
        """
        self.tokenizer, self.config, self.codes, self.rng = tokenizer, config, codes, rng
        self.vocabulary = tokenizer.vocabulary
        self.pieces: list[list[np.ndarray]] = []
        self.crops: list[np.ndarray] = []
        self.images: list[np.ndarray] = []
        self.features = 0  # rows of SigLIP features that the images so far have

    def add_ids(
        self,
        ids: Sequence[int] | np.ndarray,
        labels: np.ndarray | None = None,
        feature_index: np.ndarray | None = None,
        code_index: np.ndarray | None = None,
    ) -> None:
        """Adds tokens int32[n], with labels and indices int32[n] where they have any."""
        ids = np.asarray(ids, np.int32)
        self.pieces.append(
            [
                ids,
                np.full(len(ids), NO_LABEL, np.int32) if labels is None else labels,
                np.full(len(ids), NO_INDEX, np.int32) if feature_index is None else feature_index,
                np.full(len(ids), NO_INDEX, np.int32) if code_index is None else code_index,
            ]
        )

    def add_turn(self, turn: Turn) -> None:
        """Adds a turn's parts and its end of turn; in an answer they are learnt."""
        learn = turn.role == "answer"
        for part in turn.parts:
            if isinstance(part, str):
                ids = np.array(text_ids(part, self.tokenizer), np.int32)
                self.add_ids(ids, ids if learn else None)
            else:
                self.add_image(part, turn)
        end = np.array([self.vocabulary.end_of_turn], np.int32)
        self.add_ids(end, end if learn else None)

    def add_image(self, image: ImageLike, turn: Turn) -> None:
        """Adds an image of `turn`, from begin to end of image. Raises ImageError."""
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
            self._add_codes(image, pixels, template[:-1], turn.role == "answer")
        else:
            self.add_ids(begin, begin if learn else None)
        if features and pixels is not None:
            if codes:
                sep = np.array([self.vocabulary.sep], np.int32)
                self.add_ids(sep, sep if self.config.sequence.supervise_sep else None)
            self._add_features(pixels)
        self.add_ids(end, end if learn else None)

    def _add_codes(
        self, image: ImageLike, pixels: Image.Image | None, template: np.ndarray, answer: bool
    ) -> None:
        """Adds begin of image, sizes and rows of codes; not the closing end of image."""
        is_code = template == MODEL_CHOOSES
        index = np.full(len(template), NO_INDEX, np.int32)
        if isinstance(image, GeneratedImage):
            codes = einops.rearrange(image.codes, "row column -> (row column)")
        elif self.codes is None:
            count = int(is_code.sum())
            index[is_code] = np.arange(count, dtype=np.int32) + count * len(self.images)
            self.images.append(self._crop(pixels))
            codes = np.zeros(count, np.int32)
        else:
            codes = self._codes_of(image, pixels)
        ids = template.copy()
        ids[is_code] = self.vocabulary.code_ids[codes]
        labels = None
        if answer:
            learn_all = self.config.sequence.image_labels == "all"
            labels = ids if learn_all else np.where(is_code, ids, NO_LABEL).astype(np.int32)
        self.add_ids(ids, labels, code_index=index)

    def _crop(self, pixels: Image.Image | None) -> np.ndarray:
        """uint8[H, W, 3]: what the VQ encoder sees of an image."""
        assert pixels is not None, "an image without codes made beforehand is opened"
        offset = None
        if self.config.sequence.crop == "random" and self.rng is not None:
            down, right = self.rng.random(2)
            offset = float(down), float(right)
        return discrete_crop(pixels, self.config.sequence.image_size, offset)

    def _codes_of(self, image: ImageLike, pixels: Image.Image | None) -> np.ndarray:
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
        return einops.rearrange(codes, "row column -> (row column)")

    def _add_features(self, pixels: Image.Image) -> None:
        """Adds an image's SigLIP features and their new-lines, and its crops."""
        siglip, sequence = self.config.siglip, self.config.sequence
        layout = anyres.feature_layout(pixels.height, pixels.width, siglip, sequence)
        new_row = layout == anyres.NEW_ROW
        ids = np.where(new_row, self.vocabulary.new_line, self.vocabulary.pad)
        index = np.where(new_row, NO_INDEX, layout + self.features).astype(np.int32)
        self.add_ids(ids, feature_index=index)
        crops = siglip_crops(pixels, siglip, sequence)
        self.crops.append(crops)
        self.features += len(crops) * siglip.patches

    def example(self) -> Example:
        """The sequence written so far."""
        side = self.config.siglip.image_size
        height, width = self.config.sequence.image_size
        fields = [np.concatenate(column) for column in zip(*self.pieces)]
        no_crops = np.zeros((0, side, side, 3), np.uint8)
        images = np.stack(self.images) if self.images else np.zeros((0, height, width, 3), np.uint8)
        tokens, labels, features, codes = fields
        return Example(tokens, labels, features, codes, np.concatenate([no_crops, *self.crops]), images)
