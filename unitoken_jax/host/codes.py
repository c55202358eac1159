"""VQ codes made beforehand: one `<data file>.codes.npz` beside a conversation file, keyed by picture name.

The file holds `names` str[N], `codes` int32[N, h, w] and `about`, a JSON object that says how they were made
(`picture_size`, `crop`, and what the writer adds, such as a fingerprint of the VQ parameters).
"""

import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from unitoken_jax.config import ModelConfig
from unitoken_jax.host.conversation import Conversation, PictureFile
from unitoken_jax.host.picture import PictureError, discrete_crop, open_picture
from unitoken_jax.host.sequence import has_codes


class CodesError(ValueError):
    """A codes file that cannot be used; the message names it."""


def codes_path(data: str | os.PathLike) -> pathlib.Path:
    """Where the codes of conversation file `data` live: train.jsonl -> train.jsonl.codes.npz."""
    data = pathlib.Path(data)
    return data.with_name(data.name + ".codes.npz")


def write_codes(
    path: str | os.PathLike, codes: Mapping[str, np.ndarray], config: ModelConfig, **about
) -> None:
    """Writes `codes` (picture name -> int32[h, w]) to `path` atomically: a reader sees all or nothing.

    `about` says more on how they were made (JSON values), such as a fingerprint of the VQ parameters.
    """
    path = pathlib.Path(path)
    names = sorted(codes)
    sequence = config.sequence
    height, width = (side // config.vq.stride for side in sequence.picture_size)
    about = {"picture_size": list(sequence.picture_size), "crop": sequence.crop, **about}
    table = np.array([codes[name] for name in names], np.int32).reshape(len(names), height, width)
    part = path.with_name(path.name + f".{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.savez_compressed(file, names=np.array(names, str), codes=table, about=json.dumps(about))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_codes(path: str | os.PathLike, config: ModelConfig) -> dict[str, np.ndarray]:
    """Picture name -> int32[h, w]. Raises CodesError where the file is damaged or made for another model."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise CodesError(f'no VQ codes at {path}: run `unitoken tokenize`, or set data.codes to "online"')
    try:
        with np.load(path, allow_pickle=False) as file:
            names, codes, about = file["names"].tolist(), file["codes"], json.loads(str(file["about"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CodesError(f"{path} is damaged ({error}): run `unitoken tokenize` again") from None
    size, crop = list(config.sequence.picture_size), config.sequence.crop
    if about.get("picture_size") != size or about.get("crop") != crop:
        raise CodesError(
            f"{path} was made for picture_size {about.get('picture_size')} and crop {about.get('crop')!r}; "
            f"this model has {size} and {crop!r}: run `unitoken tokenize` again"
        )
    expected = (len(names), *(side // config.vq.stride for side in size))
    if codes.shape != expected or (codes.size and not 0 <= codes.min() <= codes.max() < config.vq.codes):
        raise CodesError(
            f"{path} holds codes of shape {codes.shape}; expected {expected} of 0 to {config.vq.codes - 1}: "
            "run `unitoken tokenize` again with this model"
        )
    return dict(zip(names, codes))


def pictures_to_encode(conversations: Iterable[Conversation], config: ModelConfig) -> list[PictureFile]:
    """The distinct pictures that have discrete tokens, in order of first appearance."""
    found: dict[str, PictureFile] = {}
    for conversation in conversations:
        for picture in codes_needed(conversation, config):
            found.setdefault(picture.name, picture)
    return list(found.values())


def codes_needed(conversation: Conversation, config: ModelConfig) -> list[PictureFile]:
    """The picture files of a conversation that have discrete tokens, in reading order."""
    turns = [turn for turn in conversation.turns if has_codes(turn, config)]
    return [part for turn in turns for part in turn.parts if isinstance(part, PictureFile)]


def crops_to_encode(
    pictures: Iterable[PictureFile], config: ModelConfig, seed: int = 0, on_error=None
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, uint8[H, W, 3]) of each picture, cropped as `config.sequence` says.

    A random crop depends on `seed` and the name alone. A bad picture raises PictureError, or is handed to
    `on_error` and left out.
    """
    for picture in pictures:
        try:
            image = open_picture(picture.path)
        except PictureError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        offset = None
        if config.sequence.crop == "random":
            offset = tuple(np.random.default_rng([seed, zlib.crc32(picture.name.encode())]).random(2))
        yield picture.name, discrete_crop(image, config.sequence.picture_size, offset)
