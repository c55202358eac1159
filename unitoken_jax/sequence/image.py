"""Images: opening them safely, the discrete (VQ) crop and the SigLIP crops.

`open_image` gives an upright 8-bit PIL image, RGB, or RGBA where parts are transparent; the crops are RGB,
transparency blended on white.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import einops
import numpy as np
from PIL import Image, UnidentifiedImageError

from unitoken_jax.config import SequenceConfig, SiglipConfig
from unitoken_jax.sequence import anyres
from unitoken_jax.sequence.errors import RowError
from unitoken_jax.storage.paths import ReadableFile, as_path

MAX_PIXELS = 89_478_485  # Pillow's own bomb limit: 256 MiB of RGB
MAX_ASPECT = 100  # beyond it the crop's enlargement of the short side would need gigabytes

# EXIF orientation -> what makes the pixels upright; any other value says nothing, as for other programs.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)
_ORIENTATION_TAG = 0x0112
_LONGEST_NAME = 500  # characters; an image's data may stand where its path should
# Formats whose header alone says what the pixels will be (None: an image in memory). Pillow learns an icon's
# size while it decodes, and whether it can decode others: their pixels are read for the size too.
_HEADER_SUFFICES = (
    *("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"),
    None,
)
# How Pillow makes a PNG file's samples 8 bits wide; the transparent one in its header is as wide as before.
_NARROWED_SAMPLES: dict[str, Callable[[int], int]] = {
    "L;2": lambda sample: sample * 85,
    "L;4": lambda sample: sample * 17,
    "RGB;16B": lambda sample: sample >> 8,
}


class ImageError(RowError):
    """An image that cannot be used; the message names the file and what to do, `reason` its kind."""

    def __init__(self, message: str, reason: str = "corrupt_image"):
        super().__init__(message, reason)


# What can be opened as an image: its path, a file inside another one, or the image itself.
ImageSource = str | os.PathLike | ReadableFile | Image.Image


def open_image(source: ImageSource) -> Image.Image:
    """`source` as an upright 8-bit RGB or RGBA image; the first frame of an animation.

    Besides a path, anything with `open("rb")` and `is_file()` will do (storage/paths.py).

    16-bit grey is scaled to 8, CMYK and palettes are converted.
    Raises ImageError naming the file where it is missing, damaged, too large or too narrow.
    """
    with _opened(source) as image:
        # All of this before load(): what image_size() promised must hold, and the file's depth is known.
        orientation = 1 if image.format == "TIFF" else _orientation(image)  # Pillow turns TIFF itself
        transparency = _transparency(image)
        with _reading(source, "is damaged or truncated", ": replace the file, or drop its conversation"):
            image.load()
            upright = _to_8_bits(image, transparency)
    return upright if orientation == 1 else upright.transpose(_UPRIGHT[orientation])


def image_size(source: ImageSource) -> tuple[int, int]:
    """(height, width) in px that `open_image` will give, from the file's header alone where that says it."""
    with _opened(source) as image:
        width, height = image.size
        # Pillow's size of a TIFF file is turned already, unless XMP alone says how.
        turned = image.format == "TIFF" and _ORIENTATION_TAG in getattr(image, "tag_v2", {})
        swaps = not turned and _orientation(image) in _SWAPS_SIDES
        return (width, height) if swaps else (height, width)


def describe(source: ImageSource) -> str:
    """A name for messages: the path (what is too long for one is cut), or what kind of object it is."""
    name = "the given image" if isinstance(source, Image.Image) else str(source)
    return name if len(name) <= _LONGEST_NAME else f"{name[:80]}... ({len(name)} characters)"


@contextlib.contextmanager
def _reading(source: ImageSource, problem: str, advice: str = "") -> Iterator[None]:
    """Whatever class of error a library raises while it reads `source` leaves as an ImageError.

    A file's bytes decide what its reader stumbles over, so that no list of classes would be complete.
    """
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:  # its message has the address of a file in memory
        raise ImageError(f"{describe(source)} {problem} (its format is not known){advice}") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{describe(source)} {problem} ({reason}){advice}") from error


@contextlib.contextmanager
def _opened(source: Any) -> Iterator[Image.Image]:
    """`source` as a PIL image whose header is read and whose size is allowed; closed at the end if a file.

    Pixels are not read yet, unless only they tell the size.
    """
    with _reading(source, "is not an image Pillow can open"):
        image = _open(source)
    try:
        _check_allowed(image, source)
        if image.format not in _HEADER_SUFFICES:
            with _reading(source, "is not an image Pillow can open"):
                image.load()
            _check_allowed(image, source)
        yield image
    finally:
        if image is not source:
            image.close()


def _open(source: Any) -> Image.Image:
    """The file `source` as Pillow opens it, or `source` where it is an image already."""
    if isinstance(source, Image.Image):
        return source
    file = source if hasattr(source, "is_file") else as_path(source)
    if not file.is_file():
        raise ImageError(f"image {describe(source)} does not exist", "missing_image")
    return Image.open(file if isinstance(file, pathlib.Path) else file.open("rb"))


def _check_allowed(image: Image.Image, source: ImageSource) -> None:
    """Raises ImageError where the pixels are too many, of a shape or of a kind that cannot be used."""
    width, height = image.size
    name = describe(source)
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} px, more than {MAX_PIXELS}: make it smaller (nothing above "
            "the any-res grid is seen anyway)"
        )
    if min(width, height) == 0 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{name} is {width} x {height} px: sides may differ {MAX_ASPECT} times at most")
    if image.mode == "F":
        raise ImageError(f"{name} has floating-point pixels of unknown range: save it with 8 bits")


def _orientation(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation 1 to 8 as far as the file's header tells; 1 where it says none of these.

    A PNG file's may be in a text chunk "Raw profile type exif".
    """
    try:
        # Not image.getexif(): of a PNG file without EXIF that would decode the pixels first.
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG)
        return int(value) if value in _UPRIGHT else 1
    except Exception:
        return 1  # damaged metadata is no reason to refuse the pixels


def _transparency(image: Image.Image) -> Any:
    """What `image.info` says is transparent, as the pixels will be when they are read; None: nothing."""
    transparency = image.info.get("transparency")
    tiles = getattr(image, "tile", ()) if image.format == "PNG" else ()  # none when the pixels are read
    narrow = _NARROWED_SAMPLES.get(tiles[0].args) if tiles else None
    if narrow is None or transparency is None:
        return transparency
    return tuple(map(narrow, transparency)) if isinstance(transparency, tuple) else narrow(transparency)


def _to_8_bits(image: Image.Image, transparency: Any) -> Image.Image:
    """Any mode of Pillow as RGB, or as RGBA where there is transparency: a sample, or (a palette's) bytes."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        grey = ((wide.clip(0, 65535) + 128) // 257).astype(np.uint8)
        if transparency is None:
            return Image.fromarray(grey).convert("RGB")
        alpha = np.where(wide == transparency, 0, 255).astype(np.uint8)
        return Image.fromarray(np.stack([grey, grey, grey, alpha], -1))
    if image.mode == "La":
        image = image.convert("LA")
    if transparency != image.info.get("transparency"):
        image = image.copy()
        image.info["transparency"] = transparency
    palette_mode = image.palette.mode if image.mode == "P" and image.palette else ""
    transparent = transparency is not None or image.mode in ("RGBA", "LA", "PA", "RGBa")
    # convert() copies where the mode is right already: the file gets closed.
    return image.convert("RGBA" if transparent or palette_mode.endswith("A") else "RGB")


def on_white(image: Image.Image) -> Image.Image:
    """An RGB image: transparency blended on white in floats and truncated, as Chameleon's tokenizer does."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    rgba = np.asarray(image)
    alpha = rgba[..., 3:] / 255.0
    blended = (1 - alpha) * 255 + alpha * rgba[..., :3]
    return Image.fromarray(blended.astype(np.uint8))


def discrete_crop(
    image: Image.Image, size: tuple[int, int], offset: tuple[float, float] | None = None
) -> np.ndarray:
    """uint8[H, W, 3]: what the VQ encoder sees, `size` = (H, W) px.

    Resized so that the crop just fits (halved with a box filter while twice too large, then bicubic), then
    cropped at the centre, or at `offset` = (down, right), fractions in [0, 1) of the room there is, and
    blended on white last: blended first, codes at transparent edges change (the recorded `vq_codes_rgba`).
    """
    height, width = size
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    fitted = (round(image.width * scale), round(image.height * scale))
    image = image.resize(fitted, Image.Resampling.BICUBIC)
    room_down, room_right = image.height - height, image.width - width
    if offset is None:
        top, left = room_down // 2, room_right // 2
    else:
        top, left = int(offset[0] * (room_down + 1)), int(offset[1] * (room_right + 1))
    return np.asarray(on_white(image.crop((left, top, left + width, top + height))))


def siglip_crops(image: Image.Image, siglip: SiglipConfig, sequence: SequenceConfig) -> np.ndarray:
    """uint8[C, S, S, 3]: the whole image squashed to one crop, then any-res's tiles, row by row."""
    image, side = on_white(image), siglip.image_size
    whole = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))[None]
    if sequence.resolution == "base":
        return whole
    grid = rows, columns = anyres.choose_grid(image.height, image.width, side, sequence.grids)
    height, width = anyres.fitted_size(image.height, image.width, grid, side)
    canvas = np.zeros((rows * side, columns * side, 3), np.uint8)
    top, left = (rows * side - height) // 2, (columns * side - width) // 2
    canvas[top : top + height, left : left + width] = np.asarray(
        image.resize((width, height), Image.Resampling.BICUBIC)
    )
    tiles = einops.rearrange(
        canvas, "(rows h) (columns w) rgb -> (rows columns) h w rgb", rows=rows, columns=columns
    )
    return np.concatenate([whole, tiles])
