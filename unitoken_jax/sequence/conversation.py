"""Conversations: the public JSON / JSONL input format -> turns of text and images.

    {"conversations": [{"from": "human", "value": "<|image|>What is it?"}, {"from": "gpt", "value": "Box."}],
     "image": ["images/0.png"]}

A `.jsonl` file holds one such object a line, a `.json` file one object or a list. `<image>` and `<|image|>`
both mark an image; `image` is a path, a list of paths, or absent. Turns alternate, a human begins.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from unitoken_jax.sequence.errors import ConversationError, row_errors
from unitoken_jax.storage import paths

_IMAGE_MARK = re.compile(r"<\|image\|>|<image>")
_URL = re.compile(r"(data|https?):", re.IGNORECASE)
_ROLES = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer"}


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image on disk: `name` as the data file writes it (the key of offline codes).

    `path` is what `image.open_image` opens: a path, local or remote, or part of a shard (storage/paths.py).
    """

    name: str
    path: pathlib.Path | paths.FileSlice | paths.InMemoryFile


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedImage:
    """An image that the model drew: its pixels, and the VQ codes int32[h, w] they were made of."""

    image: Image.Image
    codes: np.ndarray


ImageLike = ImageFile | Image.Image | GeneratedImage
Part = str | ImageLike


def image_source(image: ImageLike) -> pathlib.Path | paths.FileSlice | paths.InMemoryFile | Image.Image:
    """What `sequence.image.open_image` opens of a conversation's image."""
    if isinstance(image, GeneratedImage):
        return image.image
    return image.path if isinstance(image, ImageFile) else image


@dataclasses.dataclass(frozen=True)
class Turn:
    """One speaker's parts, in reading order; a str is text."""

    role: Literal["question", "answer"]
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Alternating turns, a question first. `source` ("file:line") goes into every error message."""

    turns: tuple[Turn, ...]
    source: str = "the conversation"

    @property
    def images(self) -> list[ImageLike]:
        """Every image, in reading order."""
        return [part for turn in self.turns for part in turn.parts if not isinstance(part, str)]


def make_conversation(turns: Sequence[Sequence], source: str = "the prompt") -> Conversation:
    """A conversation from lists of parts, questions and answers in turn, a question first.

    A part is text (str), a PIL image or a pathlib.Path of an image. Raises ConversationError beginning with
    `source`.
    """
    built = []
    with row_errors(source):
        for number, parts in enumerate(turns):
            parts = [parts] if isinstance(parts, str | Image.Image | pathlib.Path | GeneratedImage) else parts
            built.append(Turn(("question", "answer")[number % 2], tuple(_part(part) for part in parts)))
            _check_turn(built[-1])
        if not built:
            raise ConversationError("no turns")
    return Conversation(tuple(built), source)


def _part(part: object) -> Part:
    """A part as `make_conversation` takes it. Raises ConversationError where it is none."""
    if isinstance(part, os.PathLike):
        return ImageFile(os.fspath(part), pathlib.Path(part))
    if isinstance(part, Image.Image | ImageFile | GeneratedImage):
        return part
    if not isinstance(part, str):
        raise ConversationError(
            f"a part is a {type(part).__name__}; expected text, a PIL image or a pathlib.Path"
        )
    if mark := _IMAGE_MARK.search(part):
        raise ConversationError(
            f"{mark[0]} in a text part; put the image itself between two text parts instead"
        )
    return part


def parse_conversation(record: Any, source: str, root: Any, need_answers: bool = True) -> Conversation:
    """One record of a data file. Raises ConversationError beginning with `source`.

    `root / name` is an image's path: a folder, or a store of data/image_store.py. An image may also be bytes,
    the encoded file itself.
    """
    with row_errors(source):
        return Conversation(_parse_turns(record, source, root, need_answers), source)


def _parse_turns(record: Any, source: str, root: Any, need_answers: bool) -> tuple[Turn, ...]:
    """The turns of `parse_conversation`. Raises ConversationError, not yet with its source."""
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        raise ConversationError('expected an object with a list "conversations"')
    names = record.get("image")
    names = [] if names is None else [names] if isinstance(names, str | bytes) else names
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) and name for name in names):
        raise ConversationError(f'"image" must be a path or a list of paths, found {names!r}')
    files = [_image(name, f"{source}, image {i}", root) for i, name in enumerate(names, 1)]
    values = [_value(turn, number) for number, turn in enumerate(record["conversations"])]
    mark_count = sum(len(_IMAGE_MARK.findall(value)) for value in values)
    if mark_count != len(files):
        raise ConversationError(
            f'{mark_count} <|image|> in the turns but {len(files)} images in "image"; they must agree',
            "placeholders",
        )
    turns, remaining_files = [], iter(files)
    for number, value in enumerate(values):
        parts: list[Part] = []
        for i, text in enumerate(_IMAGE_MARK.split(value)):
            parts += [next(remaining_files)] if i else []
            parts += [text] if text else []
        turns.append(Turn(("question", "answer")[number % 2], tuple(parts)))
        _check_turn(turns[-1])
    if not turns:
        raise ConversationError('"conversations" is empty')
    if need_answers and turns[-1].role != "answer":
        raise ConversationError(
            "ends with a question, so nothing is to be learnt; add an answer", "unsupervised"
        )
    return tuple(turns)


def _image(name: str | bytes, description: str, root: Any) -> ImageFile:
    """The image `root / name`; of encoded bytes, one that is called as `description` says."""
    if isinstance(name, bytes):
        return ImageFile(description, paths.InMemoryFile(description, name))
    if _URL.match(name):
        raise ConversationError(f'"image" holds a URL, {name:.40}: save the image as a file, and name that')
    return ImageFile(name, root / name)


def _value(turn: Any, number: int) -> str:
    """The text of turn `number`, its speaker checked."""
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise ConversationError(f'turn {number + 1} must be {{"from": ..., "value": text}}')
    expected = ("question", "answer")[number % 2]
    speaker = turn.get("from")
    if not isinstance(speaker, str) or _ROLES.get(speaker) != expected:
        allowed = " or ".join(repr(name) for name, role in _ROLES.items() if role == expected)
        raise ConversationError(
            f"turn {number + 1} is from {speaker!r}, expected {allowed} (turns alternate, a human begins)"
        )
    return turn["value"]


def _check_turn(turn: Turn) -> None:
    """Raises ConversationError where a turn says nothing, or its text is none."""
    texts = [part for part in turn.parts if isinstance(part, str)]
    if len(texts) == len(turn.parts) and not any(text.strip() for text in texts):
        reason = "unsupervised" if turn.role == "answer" else "format"
        raise ConversationError(f"empty {turn.role}; write one, or drop the conversation", reason)
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            until = text[max(0, error.start - 20) : error.start + 1]
            raise ConversationError(
                f"the {turn.role} has {until!a}, whose last sign is no character (half of a surrogate pair, "
                "or a byte that is not UTF-8): write it again as UTF-8",
                "encoding",
            ) from error
