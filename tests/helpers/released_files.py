"""The tiny model as a published checkpoint: its files, and what `convert` is given of them."""

import dataclasses
import pathlib

import jax
import ml_dtypes
import numpy as np

from tests.helpers.tiny_model import CONFIG, tiny_params
from unitoken_jax.config import ModelConfig, published_sequence
from unitoken_jax.convert.from_torch import ConvertOptions
from unitoken_jax.convert.torch.readers import read_safetensors
from unitoken_jax.convert.torch.writers import write_safetensors

SIZE = 32
OPTIONS = ConvertOptions(image_size=SIZE)
PUBLISHED = dataclasses.replace(
    CONFIG,
    sequence=published_sequence(image_size=(SIZE, SIZE)),
    decoder=dataclasses.replace(CONFIG.decoder, qk_norm_shards=2, norm="output"),
    generation=ModelConfig().generation,
)


def published_params() -> dict:
    """bfloat16 but for the VQ-GAN, with two QK-norm rows."""
    params = jax.tree.map(lambda x: x, tiny_params())
    attention = params["decoder"]["layers"]["attention"]
    for name in ("q_norm", "k_norm"):
        attention[name] = {leaf: np.repeat(x, 2, 1) for leaf, x in attention[name].items()}
        attention[name]["scale"][:, 1] += 0.5
    return {
        name: tree if name == "vqgan" else jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), tree)
        for name, tree in params.items()
    }


def sources(release: pathlib.Path, **options) -> dict:
    """`convert`'s arguments for all folders of a release, with these changes to OPTIONS."""
    options = dataclasses.replace(OPTIONS, **options)
    return {"siglip": release / "SigLIP", "vqgan": release / "chameleon" / "tokenizer", "options": options}


def same(a, b) -> None:
    """Two trees of parameters are equal to the bit, dtypes too."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def rewrite(folder, change) -> None:
    """All tensors of `folder` through `change`, into one file without index."""
    tensors = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        tensors |= {name: tensor.read().copy() for name, tensor in read_safetensors(path).items()}
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    write_safetensors(folder / "model.safetensors", change(tensors))
