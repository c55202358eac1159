"""The crops that both encoders see of an image."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.sequence.test_image import SEQUENCE, SIGLIP, ramp
from unitoken_jax.sequence import anyres
from unitoken_jax.sequence import image as image_module
from unitoken_jax.sequence.image import discrete_crop, on_white, open_image, siglip_crops


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
