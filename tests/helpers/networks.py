"""Small networks and random parameters for the model tests; nothing is compiled to make them."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from unitoken_jax.config import DecoderConfig, ModelConfig, SiglipConfig, VQConfig
from unitoken_jax.model.quantize import QUANTIZED_KERNELS, bits_of, quantize_kernel
from unitoken_jax.model.sharding import LogicallyPartitioned

SIGLIP = SiglipConfig(image_size=20, patch_size=6, width=16, depth=2, heads=2, mlp=24)
DECODER = DecoderConfig(
    vocab_size=64, width=32, depth=2, heads=4, kv_heads=2, mlp=48, qk_norm_shards=2, dropout=0.5
)
VQ = VQConfig(
    codes=16,
    embed_dim=6,
    latent_channels=8,
    base_channels=8,
    channel_multipliers=(1, 2),
    res_blocks=1,
    resolution=8,
    attention_resolutions=(4,),
    norm_groups=4,
)
MODEL = ModelConfig(siglip=SIGLIP, vq=VQ, decoder=DECODER)


def random_params(abstract, seed: int = 0) -> dict:
    """Values for a tree of boxed shapes; norms and biases too, so that nothing hides behind 1 and 0."""

    def one(path, box: LogicallyPartitioned) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = box.value.shape
        values = np.random.default_rng((seed, zlib.crc32(name.encode()))).normal(size=shape)
        if name.endswith("kernel"):
            fan_in = np.prod(shape[:-1]) / (shape[0] if box.names[0] == "layers" else 1)
            values /= np.sqrt(fan_in)
        elif name.endswith("scale"):
            values = 1 + 0.3 * values
        elif name.endswith("bias"):
            values *= 0.3
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(
        one, abstract, is_leaf=lambda leaf: isinstance(leaf, LogicallyPartitioned)
    )


def abstract(module, *inputs) -> dict:
    """Boxed shapes of a module's parameters for inputs of these shapes."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def layer(params: dict, number: int) -> dict:
    """One layer's parameters of a stack."""
    return jax.tree.map(lambda leaf: leaf[number], params)


def quantize_params(params: dict, name: str) -> dict:
    """A model's parameters with its decoder's kernels in "int8" or "int4"."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for path in filter(QUANTIZED_KERNELS.match, flat):
        kernels = quantize_kernel(map(np.asarray, flat[path]), bits_of(name))
        flat[path] = jax.tree.map(jnp.asarray, kernels)
    return traverse_util.unflatten_dict(flat, sep="/")
