"""SigLIP: published sizes, patch order, leftover pixels, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from tests.helpers.networks import SIGLIP, abstract, layer, random_params
from unitoken_jax.config import SiglipConfig
from unitoken_jax.model.layers import LayerNorm
from unitoken_jax.model.siglip import Siglip, SiglipBlock


def crops_of(config: SiglipConfig, number: int = 1):
    return jax.ShapeDtypeStruct((number, config.image_size, config.image_size, 3), jnp.uint8)


def test_so400m_sizes():
    config = SiglipConfig()
    shapes = abstract(Siglip(config), crops_of(config))
    found = {name: leaf.shape for name, leaf in flatten_dict(nn.meta.unbox(shapes), sep="/").items()}
    expected = {
        "patch_embed/kernel": (14 * 14 * 3, 1152),
        "patch_embed/bias": (1152,),
        "position_embed/embedding": (729, 1152),
        "norm/scale": (1152,),
        "norm/bias": (1152,),
    }
    for name in ("q", "k", "v", "o"):
        expected |= {f"layers/{name}/kernel": (27, 1152, 1152), f"layers/{name}/bias": (27, 1152)}
    for name in ("attention_norm", "mlp_norm"):
        expected |= {f"layers/{name}/scale": (27, 1152), f"layers/{name}/bias": (27, 1152)}
    expected |= {"layers/up/kernel": (27, 1152, 4304), "layers/up/bias": (27, 4304)}
    expected |= {"layers/down/kernel": (27, 4304, 1152), "layers/down/bias": (27, 1152)}
    assert found == expected
    out = jax.eval_shape(Siglip(config).apply, {"params": nn.meta.unbox(shapes)}, crops_of(config, 5))
    assert out.shape == (5, 729, 1152)


@pytest.fixture(scope="module")
def tower():
    module = Siglip(SIGLIP)
    params = random_params(abstract(module, crops_of(SIGLIP)))
    return jax.jit(lambda crops: module.apply({"params": params}, crops)), params


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)


def test_bytes_are_normalised_to_unit_range(tower, crops):
    run, _ = tower
    np.testing.assert_allclose(run(crops), run(crops.astype(np.float32) / 127.5 - 1), atol=1e-5)


def test_leftover_pixels_are_dropped(tower, crops):
    run, _ = tower
    changed = crops.copy()
    changed[:, 18:], changed[:, :, 18:] = 0, 255
    np.testing.assert_array_equal(run(crops), run(changed))
    changed[:, 17, 17] ^= 255
    assert np.abs(run(crops) - run(changed)).max() > 1e-3


def test_patches_run_row_by_row_and_scan_is_loop(tower, crops):
    """The tower against patches cut one by one and blocks applied one by one."""
    run, params = tower

    @jax.jit
    def loop():
        pixels = crops.astype(np.float32) / 127.5 - 1
        patches = [
            pixels[:, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6].reshape(2, -1)
            for row in range(3)
            for column in range(3)
        ]
        x = jnp.stack(patches, axis=1) @ params["patch_embed"]["kernel"] + params["patch_embed"]["bias"]
        x = x + params["position_embed"]["embedding"]
        for i in range(SIGLIP.depth):
            x, _ = SiglipBlock(SIGLIP).apply({"params": layer(params["layers"], i)}, x)
        return LayerNorm(SIGLIP.norm_eps).apply({"params": params["norm"]}, x)

    np.testing.assert_allclose(run(crops), loop(), atol=1e-5)


def test_remat_is_plain(tower, crops):
    _, params = tower

    def gradient(**settings):
        module = Siglip(SIGLIP, **settings)
        loss = lambda p: jnp.sum(jnp.sin(module.apply({"params": p}, crops)))  # noqa: E731
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params))

    for found, plain in zip(gradient(remat="full"), gradient()):
        np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5)


def test_wrong_size_is_an_error(tower):
    with pytest.raises(ValueError, match=r"\(18, 20, 3\); expected \(20, 20, 3\).*siglip.image_size"):
        tower[0](np.zeros((1, 18, 20, 3), np.uint8))
