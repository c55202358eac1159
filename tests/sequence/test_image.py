"""Opening images of every kind."""

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
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from unitoken_jax.config import SequenceConfig, SiglipConfig
from unitoken_jax.sequence.image import (
    ImageError,
    discrete_crop,
    image_size,
    on_white,
    open_image,
    siglip_crops,
)
from unitoken_jax.storage.paths import InMemoryFile

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


SIDEWAYS = (30, 20)  # of a 20 x 30 image whose orientation is 6
EXIF_SHORT, EXIF_ASCII, EXIF_RATIONAL = 3, 2, 5


def exif_with(orientation, kind=EXIF_SHORT) -> bytes:
    """An EXIF block of one tag, whatever its value and type."""
    directory = ImageFileDirectory_v2()
    directory.tagtype[0x0112] = kind
    directory[0x0112] = orientation
    return b"Exif\0\0II*\0\x08\0\0\0" + directory.tobytes(8)


def saved(image_format, **options) -> InMemoryFile:
    buffer = io.BytesIO()
    Image.fromarray(ramp()).save(buffer, image_format, **options)
    return InMemoryFile(f"a.{image_format}", buffer.getvalue())


def size_of_pixels(source) -> tuple[int, int]:
    """(height, width) of what `open_image` gives, which `image_size` must say too."""
    image = open_image(source)
    assert image_size(source) == (image.height, image.width)
    return image.height, image.width


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize(
    ("value", "kind", "size"),
    [
        (0, EXIF_SHORT, (20, 30)),
        (6, EXIF_SHORT, SIDEWAYS),
        (9, EXIF_SHORT, (20, 30)),
        (65535, EXIF_SHORT, (20, 30)),
        ("6", EXIF_ASCII, (20, 30)),
        ("upright", EXIF_ASCII, (20, 30)),
        (IFDRational(6, 1), EXIF_RATIONAL, SIDEWAYS),
        (IFDRational(6, 0), EXIF_RATIONAL, (20, 30)),
    ],
)
def test_any_orientation_is_the_same_for_size_and_pixels(image_format, value, kind, size):
    if image_format == "AVIF" and kind != EXIF_SHORT:
        return  # Pillow cannot write it
    if image_format == "TIFF":
        directory = ImageFileDirectory_v2()
        directory.tagtype[0x0112] = kind
        directory[0x0112] = value
        options = {"tiffinfo": directory}
    else:
        options = {"exif": exif_with(value, kind)}
    assert size_of_pixels(saved(image_format, **options)) == size


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize(("value", "size"), [(6, SIDEWAYS), (9, (20, 30))])
def test_orientation_in_xmp(image_format, value, size):
    text = f'<x:xmpmeta><rdf:Description tiff:Orientation="{value}"/></x:xmpmeta>'
    options = {"xmp": text.encode()}
    if image_format == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", text)
        options = {"pnginfo": info}
    if image_format == "TIFF":
        directory = ImageFileDirectory_v2()
        directory.tagtype[700] = 1
        directory[700] = text.encode()
        options = {"tiffinfo": directory}
    assert size_of_pixels(saved(image_format, **options)) == size


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("value", "size"), [(6, SIDEWAYS), (9, (20, 30))])
def test_orientation_in_a_raw_profile_of_a_png_file(compressed, value, size):
    data = exif_with(value)
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=compressed)
    assert size_of_pixels(saved("PNG", pnginfo=info)) == size
    broken = PngInfo()
    broken.add_text("Raw profile type exif", "\nexif\n 3\nno hex\n")
    assert size_of_pixels(saved("PNG", pnginfo=broken)) == (20, 30)


Image.init()


@pytest.mark.parametrize("image_format", sorted(Image.SAVE))
def test_the_header_of_every_format_promises_what_its_pixels_are(image_format):
    """A size, or an ImageError of both: never a promise that the pixels do not keep."""
    images = [Image.fromarray(ramp(32, 32)).convert(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK")]
    for image in [*images, images[1].convert("I").convert("I;16")]:
        buffer = io.BytesIO()
        try:
            image.save(buffer, image_format)
        except Exception:
            continue  # no format has all modes
        file = InMemoryFile("a", buffer.getvalue())
        try:
            size = image_size(file)
        except ImageError:
            with pytest.raises(ImageError):
                open_image(file)
        else:
            assert open_image(file).size == size[::-1]


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


def png_of(depth, colour_type, row, transparent, palette=None) -> InMemoryFile:
    """A PNG file of one row of packed samples; `transparent` is what its tRNS chunk holds."""
    width = len(row) * 8 // depth // (3 if colour_type == 2 else 1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0),
        b"PLTE": palette,
        b"tRNS": transparent,
        b"IDAT": zlib.compress(b"\0" + row),
        b"IEND": b"",
    }
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks.items():
        if body is not None:
            data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return InMemoryFile("a.png", data)


@pytest.mark.parametrize(
    "file",
    [
        png_of(1, 0, b"\x7f", struct.pack(">H", 0)),
        png_of(2, 0, b"\x1b", struct.pack(">H", 0)),
        png_of(2, 0, b"\x6c", struct.pack(">H", 1)),
        png_of(4, 0, b"\x12", struct.pack(">H", 1)),
        png_of(8, 0, b"\x12\x34", struct.pack(">H", 0x12)),
        png_of(16, 0, b"\x12\x34\x12\x35", struct.pack(">H", 0x1234)),
        png_of(8, 2, b"\1\2\3\4\5\6", struct.pack(">HHH", 1, 2, 3)),
        png_of(16, 2, struct.pack(">6H", 0x1234, 0x2345, 0x3456, 0, 0, 0), b"\x12\x34\x23\x45\x34\x56"),
        png_of(2, 3, b"\x1b", b"\0\xff", b"\0" * 12),
    ],
    ids=["grey1", "grey2", "grey2 of 1", "grey4", "grey8", "grey16", "rgb8", "rgb16", "palette2"],
)
def test_the_transparent_sample_of_a_png_file_is_white_at_every_depth(file):
    """The first sample of each is the transparent one; the others stay as they are."""
    image = open_image(file)
    assert np.asarray(image)[0, :, 3].tolist() == [0] + [255] * (image.width - 1)
    assert np.asarray(on_white(image))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_the_transparent_sample_of_an_image_in_memory(mode):
    image = Image.fromarray(np.array([[1000, 1001]], np.int32))
    image = image if mode == "I" else image.convert(mode)
    image.info["transparency"] = 1000
    assert np.asarray(open_image(image))[0, :, 3].tolist() == [0, 255]


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


def avif_without_pixels() -> bytes:
    """The header of a good file; libavif raises RuntimeError at its pixels."""
    data = saved("AVIF").data
    start = data.index(b"mdat") + 4
    return data[:start] + bytes(len(data) - start)


def dds_of_unknown_pixels() -> bytes:
    """Pillow raises NotImplementedError."""
    data = saved("DDS").data
    return data[:80] + struct.pack("<I", 0x200) + data[84:]


def png_with_a_long_text() -> bytes:
    """Pillow raises ValueError while it reads the header."""
    info = PngInfo()
    info.add_text("comment", "x" * 2_000_000, zip=True)
    return saved("PNG", pnginfo=info).data


@pytest.mark.parametrize("make", [avif_without_pixels, dds_of_unknown_pixels, png_with_a_long_text])
def test_whatever_a_reader_raises_is_an_image_error(make):
    with pytest.raises(ImageError, match=r"^a\.bin is (damaged|not an image).*\(.+\)") as caught:
        open_image(InMemoryFile("a.bin", make()))
    assert caught.value.__cause__ is not None  # for --debug


def test_any_class_of_error_is_an_image_error(monkeypatch):
    class Strange(Exception):
        pass

    def fail(*_):
        raise Strange

    file = saved("PNG")
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ImageError, match=r"a\.PNG is damaged or truncated \(Strange\)"):
        open_image(file)
    monkeypatch.setattr(Image, "open", fail)
    for function in (open_image, image_size):
        with pytest.raises(ImageError, match=r"a\.PNG is not an image Pillow can open \(Strange\)"):
            function(file)


def test_data_in_place_of_a_path_is_not_repeated():
    with pytest.raises(ImageError, match=r"^data:image/png;base64,x+\.\.\. \(5022 characters\)") as caught:
        image_size("data:image/png;base64," + "x" * 5000)
    assert len(str(caught.value)) < 300


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
