"""Images of anything but the small world show none of it."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unitoken_jax.scenes import texture as texture_module
from unitoken_jax.scenes import variation
from unitoken_jax.scenes.texture import texture
from unitoken_jax.scenes.variation import MAX_SIDE, MIN_SIDE

SEEDS = st.integers(0, 2**32)


@given(SEEDS)
def test_an_equal_seed_gives_equal_pixels(seed):
    first = texture(random.Random(seed))
    np.testing.assert_array_equal(first, texture(random.Random(seed)))
    assert first.dtype == np.uint8
    assert MIN_SIDE <= min(first.shape[:2]) <= MAX_SIDE
    assert first.std() > 2  # it is no plain ground


def test_no_object_is_painted_in_a_texture(monkeypatch):
    for name in ("_paint", "_distance", "digit_bitmap", "_shade"):
        monkeypatch.delattr(variation, name)
    rng = random.Random(2)
    assert len({texture(rng).tobytes() for _ in range(12)}) == 12


@given(SEEDS)
def test_things_are_in_no_colour_of_the_world(seed):
    rng = random.Random(seed)
    for _ in range(20):
        colour = texture_module._dull(rng)
        assert max(colour) - min(colour) <= 0.3 * max(colour) + 1
