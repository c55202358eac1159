"""Images: opening them safely, the discrete (VQ) crop and the SigLIP crops.

`open_image` gives an upright 8-bit PIL image, RGB, or RGBA where parts are transparent; the crops are RGB,
transparency blended on white.
"""

import os
import pathlib
import struct
import zlib
from typing import Any

import einops
import numpy as np
from PIL import Image

from unitoken_jax.config import SequenceConfig, SiglipConfig
from unitoken_jax.sequence import anyres
from unitoken_jax.storage.paths import ReadableFile

MAX_PIXELS = 89_478_485  # Pillow's own bomb limit: 256 MiB of RGB
MAX_ASPECT = 100  # beyond it the crop's enlargement of the short side would need gigabytes

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
# What Pillow's readers raise on damaged files, besides OSError.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class ImageError(ValueError):
    """An image that cannot be used; the message names the file and what to do, `reason` its kind."""

    def __init__(self, message: str, reason: str = "corrupt_image"):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.reason)


# What can be opened as an image: its path, a file inside another one, or the image itself.
ImageSource = str | os.PathLike | ReadableFile | Image.Image


def open_image(source: ImageSource) -> Image.Image:
    """`source` as an upright 8-bit RGB or RGBA image; the first frame of an animation.

    Besides a path, anything with `open("rb")` and `is_file()` will do (storage/paths.py).

    16-bit grey is scaled to 8, CMYK and palettes are converted.
    Raises ImageError naming the file where it is missing, damaged, too large or too narrow.
    """
    name = describe(source)
    image = _open(source, name)
    try:
        turn = _orientation(image)  # before load(): the size promised by image_size() must hold
        image.load()
        plain = _to_8_bits(image, name)
    except ImageError:
        raise
    except _DAMAGE as error:
        raise ImageError(
            f"{name} is damaged or truncated ({error}): replace the file, or drop its conversation"
        ) from None
    finally:
        if image is not source:
            image.close()
    return plain.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else plain


def image_size(source: ImageSource) -> tuple[int, int]:
    """(height, width) in px that `open_image` will give, read from the file's header alone."""
    image = _open(source, describe(source))
    try:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)
    finally:
        if image is not source:
            image.close()


def describe(source: ImageSource) -> str:
    """A name for messages: the path, or what kind of object it is."""
    return "the given image" if isinstance(source, Image.Image) else str(source)


def _open(source: Any, name: str) -> Image.Image:
    """`source` as a PIL image whose header is read and whose size is allowed; pixels are not read yet."""
    if isinstance(source, Image.Image):
        image = source
    else:
        file = source if hasattr(source, "is_file") else pathlib.Path(source)
        if not file.is_file():
            raise ImageError(f"image {name} does not exist", "missing_image")
        try:
            image = Image.open(file if isinstance(file, pathlib.Path) else file.open("rb"))
        except _DAMAGE as error:
            raise ImageError(f"{name} is not an image Pillow can open ({error})") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} px, more than {MAX_PIXELS}: make it smaller (nothing above "
            "the any-res grid is seen anyway)"
        )
    if min(width, height) == 0 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{name} is {width} x {height} px: sides may differ {MAX_ASPECT} times at most")
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 as far as the file's header tells."""
    if image.format == "TIFF":  # Pillow's reader turns these itself
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # getexif() would decode the whole image
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE:
        return 1  # damaged metadata is no reason to refuse the pixels


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Any mode of Pillow as RGB, or as RGBA where there is transparency."""
    if image.mode == "F":
        raise ImageError(f"{name} has floating-point pixels of unknown range: save it with 8 bits")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    transparent = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa")
    # convert() copies where the mode is right already: the file gets closed.
    return image.convert("RGBA" if transparent else "RGB")


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
