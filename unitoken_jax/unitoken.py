"""A model ready for use, on top of its directory: what programs and the command line draw and answer with."""

import contextlib
import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from unitoken_jax.checkpoint.model_directory import NETWORK, load_model
from unitoken_jax.config import ModelConfig
from unitoken_jax.model import sharding
from unitoken_jax.sequence.tokenizer import Tokenizer


class UniToken:
    """A model ready for use: `generate` images, `answer` questions, or take `params` and `apply`."""

    def __init__(
        self,
        config: ModelConfig,
        params: Mapping,
        tokenizer: Tokenizer,
        *,
        mesh=None,
        dtype=None,
        cache_dtype=None,
        manifest=None,
    ):
        """Of parts in memory. `dtype` of the computation; None: float32 on a CPU, else bfloat16.

        `cache_dtype` of keys and values; None: `dtype`, "int8" has scales beside it.
        """
        from unitoken_jax.model.unitoken import UniTokenModel
        from unitoken_jax.model.vqgan import VQModel
        from unitoken_jax.sequence.build import validate_config

        validate_config(config, tokenizer.vocabulary)
        self.config, self.tokenizer = config, tokenizer
        self._params = {name: dict(tree) for name, tree in params.items()}
        self.mesh, self.manifest = mesh, dict(manifest or {})
        self.module = UniTokenModel(
            config,
            dtype=_default_dtype() if dtype is None else jnp.dtype(dtype),
            cache_dtype=cache_dtype and jnp.dtype(cache_dtype),
        )
        # In float32 whatever the rest computes in: a code is the nearest of thousands.
        self.vq = VQModel(config.vq, dtype=jnp.dtype("float32"))

    @classmethod
    def load(
        cls, path: str | os.PathLike, *, mesh=None, dtype=None, quantize: str | None = None
    ) -> "UniToken":
        """Of the model directory `path`; its parameters are cast to `dtype`. Errors as `load_model`.

        `quantize` "int8" or "int4": the decoder's kernels in so many bits, and an int8 cache.
        """
        dtype = _default_dtype() if dtype is None else jnp.dtype(dtype)
        config, params, tokenizer, manifest = load_model(path, mesh=mesh, dtype=dtype, quantize=quantize)
        cache = None if quantize is None else "int8"
        return cls(config, params, tokenizer, mesh=mesh, dtype=dtype, cache_dtype=cache, manifest=manifest)

    def generate(self, prompts: Sequence[str], **settings) -> list:
        """PIL images of `prompts`; settings (seed, guidance, number, ...) as `generate.image.draw`."""
        return [drawing.image for drawing in self.draw(prompts, **settings)]

    def answer(self, conversations: Sequence, **settings) -> list[str]:
        """Answers, as text, to [[part, ...], ...]; settings as `generate.text.answer`."""
        replies = self.reply(conversations, **settings)
        return replies if settings.get("stream") else [reply.text for reply in replies]

    def chat(self, conversations: Sequence, **settings) -> list:
        """Answers of text and images: a list of `generate.chat.Reply`; settings as `generate.chat.chat`."""
        from unitoken_jax.generate.chat import chat

        return chat(self, conversations, **settings)

    def draw(self, prompts: Sequence[str], **settings) -> list:
        """As `generate`, with the tokens: a list of `generate.image.Drawing`."""
        from unitoken_jax.generate.image import draw

        return draw(self, prompts, **settings)

    def reply(self, conversations: Sequence, **settings) -> list:
        """As `answer`, with the tokens: a list of `generate.text.Answer`."""
        from unitoken_jax.generate.text import answer

        return answer(self, conversations, **settings)

    def apply(self, params: Mapping, batch: Mapping) -> jax.Array:
        """Logits float32[B, T, V] of a `Batch`; pure. `params`: the whole tree, or the network's alone."""
        network = {name: params[name] for name in NETWORK if name in params}
        return self.module.apply({"params": network}, batch)

    @property
    def params(self) -> dict:
        """All parameters, as stored. Once the model has been decoding, the decoder's layers are a copy."""
        from unitoken_jax.model.decoder import stack_layers

        params = dict(self._params)
        if "decoder" in params:
            params["decoder"] = self.run(stack_layers, params["decoder"])
        return params

    @property
    def network_params(self) -> dict:
        """`params` without the VQ-GAN's."""
        return {name: tree for name, tree in self.params.items() if name in NETWORK}

    @property
    def vq_params(self) -> dict:
        """The VQ-GAN's parameters."""
        return self._params["vqgan"]

    def decoding_params(self) -> dict:
        """The parameters without the VQ-GAN's, the decoder's layers apart as loops best read them
        (`decode.ready`).

        From now on the model holds them so, and no longer as a stack: there need not be room for both.
        """
        from unitoken_jax.model.decoder import unstack_layers

        decoder = self._params["decoder"]
        if "0" not in decoder["layers"]:
            stacks = traverse_util.flatten_dict(decoder.pop("layers"))
            decoder["layers"] = self.run(unstack_layers, stacks)
        return {name: self._params[name] for name in NETWORK if name in self._params}

    def require(self, group: str, purpose: str) -> None:
        """Raises ValueError where the parameter group ("vqgan/decoder") that `purpose` needs is absent."""
        tree = self._params
        for name in group.split("/"):
            tree = tree.get(name) if isinstance(tree, Mapping) else None
        if not tree:
            raise ValueError(
                f"this model directory has no {group} parameters, which {purpose} needs: convert it again "
                "with that part's checkpoint (for vqgan: --vqgan)"
            )

    def rows(self, number: int) -> int:
        """Rows of the compiled program that `number` prompts run in."""
        from unitoken_jax.generate.decode import batch_rows

        return batch_rows(number, 1 if self.mesh is None else sharding.data_parallel_size(self.mesh))

    def place(self, tree):
        """Host arrays [B, ...] on the devices, their rows spread over the mesh."""
        if self.mesh is None:
            return tree
        rows = jax.sharding.NamedSharding(self.mesh, sharding.spec("batch"))
        return jax.device_put(tree, rows)

    def fetch(self, array) -> np.ndarray:
        """A whole array from the devices; where other processes have part of it, all of them call this."""
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            from jax.experimental import multihost_utils

            return multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)

    def run(self, function, *arguments, **settings):
        """Calls `function` under the mesh, if there is one."""
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            return function(*arguments, **settings)


def _default_dtype():
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
