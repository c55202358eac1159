"""Random and abstract parameters: one plain dict {"siglip", "adapter", "decoder", "vqgan"}."""

import concurrent.futures
import dataclasses
import functools
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from unitoken_jax.config import LoraConfig, ModelConfig, VQConfig
from unitoken_jax.model.layers import Normal
from unitoken_jax.model.lora import abstract_pairs, merge_trees
from unitoken_jax.model.sharding import LogicallyPartitioned, shardings
from unitoken_jax.model.unitoken import UniTokenModel
from unitoken_jax.model.vqgan import VQModel


def init_params(config: ModelConfig, seed: int = 0, mesh: Mesh | None = None) -> dict:
    """Random float32 parameters, unboxed, made where `mesh` wants them.

    Each depends on the seed and its own path alone: not on mesh, backend or what else the model holds.
    """
    return _draw(abstract_params(config), seed, mesh)


def init_network(config: ModelConfig, network: str, seed: int = 0) -> dict:
    """Random float32 parameters of one network ("adapter") alone, the same as `init_params` draws."""
    return _draw({network: abstract_params(config)[network]}, seed, None)[network]


def init_vqgan(config: VQConfig, seed: int = 0) -> dict:
    """Random float32 parameters of the image tokenizer alone: what "vqgan" holds."""
    return _draw({"vqgan": _abstract_vqgan(config)}, seed, None)["vqgan"]


def init_lora(config: ModelConfig, lora: LoraConfig, seed: int = 0, mesh: Mesh | None = None) -> dict:
    """The LoRA pairs that training with `lora` begins with, as a tree of their leaves alone: they change
    nothing yet. Made as `init_params` makes parameters; raises as `lora.target_kernels`."""
    return _draw(abstract_pairs(abstract_params(config), lora), seed, mesh)


def abstract_params(config: ModelConfig, lora: LoraConfig = LoraConfig()) -> dict:
    """ShapeDtypeStructs in `sharding.LogicallyPartitioned` boxes; no memory, a second for 34B, once a config.

    `nn.meta.unbox` takes the boxes off. `lora` adds its pairs. Raises ValueError where no network has the
    sizes of `config`, and as `lora.target_kernels`.
    """
    decoder = dataclasses.replace(config.decoder, dropout=0.0)  # has no parameters
    try:
        traced = _abstract_model(dataclasses.replace(config, decoder=decoder))
        boxes = {**traced, "vqgan": _abstract_vqgan(config.vq)}
    except Exception as error:  # of whichever layer does not fit
        raise ValueError(f"no network has the sizes of this config ({error})") from error
    boxes = jax.tree.map(lambda leaf: leaf, boxes)  # dicts that are the caller's own
    return merge_trees(boxes, abstract_pairs(boxes, lora)) if lora.rank else boxes


@functools.cache
def _abstract_model(config: ModelConfig) -> dict:
    side = config.siglip.image_size
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = dict.fromkeys(("tokens", "segments", "positions", "image_feature_index"), token)
    batch["crops"] = jax.ShapeDtypeStruct((1, 1, side, side, 3), jnp.uint8)
    return _abstract_init(UniTokenModel(config), batch)


@functools.cache
def _abstract_vqgan(config: VQConfig) -> dict:
    image = jax.ShapeDtypeStruct((1, config.stride, config.stride, 3), jnp.uint8)
    return _abstract_init(VQModel(config), image)


def _abstract_init(module: nn.Module, inputs) -> dict:
    """The boxed shapes of `module`'s parameters; nothing is compiled, not even for a key."""
    return jax.eval_shape(lambda inputs: module.init(jax.random.key(0), inputs), inputs)["params"]


def _draw(abstract: dict, seed: int, mesh: Mesh | None) -> dict:
    """Random values for a tree of boxed ShapeDtypeStructs, one leaf at a time in host memory."""

    def draw_leaf(path, box: LogicallyPartitioned, layout) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        layers = box.names[:1] == ("layers",)
        assert isinstance(box.init, Normal), name
        value = _normal(box.init, box.value.shape, layers, (seed, zlib.crc32(name.encode())))
        if layout is None:
            return jnp.array(value)  # a copy: donating what numpy still owns is not safe
        return jax.make_array_from_callback(value.shape, layout, lambda index: value[index])

    boxed = functools.partial(
        jax.tree_util.tree_map_with_path, is_leaf=lambda leaf: isinstance(leaf, LogicallyPartitioned)
    )
    if mesh is None:
        return boxed(lambda path, box: draw_leaf(path, box, None), abstract)
    return boxed(draw_leaf, abstract, shardings(mesh, abstract))


def _normal(init: Normal, shape: tuple[int, ...], layers: bool, seed: tuple[int, int]) -> np.ndarray:
    """float32[shape] of `init`; a leading layers axis is drawn layer by layer, on all cores."""
    value = np.full(shape, init.mean, np.float32)
    if init.std == 0.0:
        return value

    def draw(item: tuple[int, np.ndarray]) -> None:
        number, layer = item
        layer += init.std * np.random.default_rng((*seed, number)).standard_normal(layer.shape, np.float32)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(draw, enumerate(value if layers else value[None])))
    return value
