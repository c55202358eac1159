"""Opening images of every kind, and the crops both encoders see."""

import contextlib
import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unitoken_jax.config import SequenceConfig, SiglipConfig
from unitoken_jax.sequence import anyres
from unitoken_jax.sequence import image as image_module
from unitoken_jax.sequence.image import (
    ImageError,
    discrete_crop,
    image_size,
    on_white,
    open_image,
    siglip_crops,
)

SIGLIP = SiglipConfig(image_size=24, patch_size=8)
SEQUENCE = SequenceConfig()


def ramp(height=20, width=30) -> np.ndarray:
    """uint8[H, W, 3], no two corners alike."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, (x + y) % 256], -1).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_exif_rotation(orientation, suffix, tmp_path):
    """Pixels stored turned, as cameras do, come out upright, and the size is known beforehand."""
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    undo |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    image = Image.fromarray(ramp())
    if orientation in undo:
        image = image.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif, **options)
    assert image_size(path) == (20, 30)
    found = np.asarray(open_image(path)).astype(int)
    assert found.shape == (20, 30, 3)
    assert np.abs(found - ramp()).mean() < (6 if suffix == "jpg" else 0.01)


def test_orientation_after_the_pixels_is_ignored_by_size_and_pixels_alike(tmp_path):
    """A PNG may carry EXIF behind its pixels: the promised size must be the size one gets."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(ramp()).save(buffer, "png")
    data = buffer.getvalue()
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    end = data.rindex(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:end] + late + data[end:])
    assert image_size(tmp_path / "a.png") == (20, 30)
    assert open_image(tmp_path / "a.png").size == (30, 20)


def test_transparency_is_blended_on_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    pixels[0, 1] = (10, 20, 30, 0)
    pixels[1, 0] = (100, 0, 0, 128)
    found = discrete_crop(open_image(Image.fromarray(pixels)), (2, 2))
    assert found[0, 0].tolist() == [10, 20, 30]
    assert found[0, 1].tolist() == [255, 255, 255]
    half = 128 / 255
    assert found[1, 0].tolist() == [int((1 - half) * 255 + half * 100), 127, 127]


def test_discrete_crop_blends_last_and_siglip_crops_first():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    image = open_image(Image.fromarray(pixels))
    resized = Image.fromarray(pixels).resize((16, 21), Image.Resampling.BICUBIC).crop((0, 2, 16, 18))
    np.testing.assert_array_equal(discrete_crop(image, (16, 16)), np.asarray(on_white(resized)))
    blended = siglip_crops(on_white(image), SIGLIP, SEQUENCE)
    np.testing.assert_array_equal(siglip_crops(image, SIGLIP, SEQUENCE), blended)


def test_opaque_images_lose_nothing_by_an_alpha_channel():
    image = Image.fromarray(ramp(40, 30))
    opaque = open_image(image.convert("RGBA"))
    np.testing.assert_array_equal(discrete_crop(opaque, (16, 16)), discrete_crop(image, (16, 16)))


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa", "P", "L", "RGB"])
def test_every_kind_of_transparency(mode, tmp_path):
    clear = Image.new("RGBA", (3, 3), (0, 0, 0, 0))
    if mode in ("P", "L", "RGB"):
        image = Image.new(mode, (3, 3), 0)
        path = tmp_path / "a.png"
        image.save(path, transparency=(0, 0, 0) if mode == "RGB" else 0)
        found = open_image(path)
    else:
        clear = Image.new("PA", (3, 3), (0, 0)) if mode == "PA" else clear
        clear = clear.convert("LA") if mode == "La" else clear
        found = open_image(clear.convert(mode))
    assert found.mode == "RGBA"
    assert discrete_crop(found, (3, 3)).min() == 255
    assert siglip_crops(found, SIGLIP, dataclasses.replace(SEQUENCE, resolution="base")).min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_become_rgb(mode):
    found = open_image(Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode))
    assert (found.mode, found.size) == ("RGB", (5, 4))
    assert np.asarray(found).min() > 250


def test_cmyk_file(tmp_path):
    Image.new("RGB", (8, 8), (200, 30, 30)).convert("CMYK").save(tmp_path / "a.jpg")
    assert np.abs(np.asarray(open_image(tmp_path / "a.jpg")).astype(int) - [200, 30, 30]).max() < 12


def test_16_bits_are_scaled(tmp_path):
    values = np.array([[0, 257, 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 0, 255]
    wide = Image.fromarray(values.astype(np.int32))
    assert np.asarray(open_image(wide))[0, :, 0].tolist() == [0, 1, 0, 255]


def test_floats_are_refused():
    with pytest.raises(ImageError, match="floating-point"):
        open_image(Image.new("F", (3, 3)))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(suffix, tmp_path):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    found = np.asarray(open_image(tmp_path / f"a.{suffix}"))
    assert found[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_truncated_files(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"a\.{suffix} is (damaged|not an image)"):
        open_image(path)


def test_damaged_and_foreign_files(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    for function in (open_image, image_size):
        with pytest.raises(ImageError, match=r"a\.png is not an image"):
            function(tmp_path / "a.png")
        with pytest.raises(ImageError, match=r"none\.png does not exist"):
            function(tmp_path / "none.png")
        with pytest.raises(ImageError, match="does not exist"):
            function(tmp_path)


@given(st.integers(8, 1200), st.integers(0, 255))
def test_a_damaged_byte_never_escapes_as_another_error(place, value):
    buffer = io.BytesIO()
    Image.fromarray(ramp()).save(buffer, "png")
    data = bytearray(buffer.getvalue())
    data[place % len(data)] = value
    try:
        image = Image.open(io.BytesIO(bytes(data)))
    except Exception:
        return
    with contextlib.suppress(ImageError):
        assert open_image(image).mode in ("RGB", "RGBA")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 30_000])
def test_bombs_are_refused_from_the_header(side, tmp_path):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.png"):
        image_size(tmp_path / "a.png")


def test_extreme_shapes_are_refused():
    with pytest.raises(ImageError, match="sides may differ 100 times"):
        open_image(Image.new("RGB", (1, 101)))
    assert open_image(Image.new("RGB", (1, 100))).size == (1, 100)


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([(16, 16), (8, 24)]))
def test_discrete_crop_fits_and_offsets_stay_inside(height, width, size):
    image = Image.fromarray(ramp(height, width))
    if max(height, width) > image_module.MAX_ASPECT * min(height, width):
        return
    for offset in (None, (0, 0), (0.999, 0.999)):
        found = discrete_crop(image, size, offset)
        assert (found.shape, found.dtype) == ((*size, 3), np.uint8)


def test_discrete_crop_takes_the_middle_or_the_offset():
    image = Image.fromarray(ramp(16, 33))
    np.testing.assert_array_equal(discrete_crop(image, (16, 16)), ramp(16, 33)[:, 8:24])
    np.testing.assert_array_equal(discrete_crop(image, (16, 16), (0, 0)), ramp(16, 33)[:, :16])
    np.testing.assert_array_equal(discrete_crop(image, (16, 16), (0, 0.999)), ramp(16, 33)[:, 17:])


def test_large_images_are_halved_first():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    found = discrete_crop(image, (32, 32))
    np.testing.assert_array_equal(found, image.resize((32, 32), Image.Resampling.BOX))
    assert (found != np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))).any()


@given(st.integers(4, 120), st.integers(4, 120), st.sampled_from(["anyres", "base"]))
def test_siglip_crops_are_as_many_as_promised(height, width, resolution):
    sequence = dataclasses.replace(SEQUENCE, resolution=resolution)
    crops = siglip_crops(Image.fromarray(ramp(height, width)), SIGLIP, sequence)
    assert crops.shape == (anyres.crop_count(height, width, SIGLIP, sequence), 24, 24, 3)
    assert crops.dtype == np.uint8


def test_tiles_are_row_major_parts_of_the_image():
    pixels = ramp(48, 48)
    crops = siglip_crops(Image.fromarray(pixels), SIGLIP, SEQUENCE)
    assert len(crops) == 5
    for tile, (y, x) in zip(crops[1:], [(0, 0), (0, 24), (24, 0), (24, 24)]):
        np.testing.assert_array_equal(tile, pixels[y : y + 24, x : x + 24])


def test_padding_is_black_and_centred():
    crops = siglip_crops(Image.new("RGB", (48, 20), (255, 255, 255)), SIGLIP, SEQUENCE)
    assert len(crops) == 3
    column = crops[1][:, 5, 0]
    assert column.tolist() == [0] * 2 + [255] * 20 + [0] * 2
