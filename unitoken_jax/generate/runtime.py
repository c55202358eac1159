"""What generation needs of a model: its networks, its parameters as decoding reads them, and its devices."""

import contextlib
import copy
import os
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.checkpoint.adapter import Adapter, attach, load_adapter, model_of
from unitoken_jax.checkpoint.model_directory import NETWORK, load_model, open_model
from unitoken_jax.config import ModelConfig
from unitoken_jax.generate.decode import batch_rows
from unitoken_jax.model import sharding
from unitoken_jax.model.decoder import unstack_layers
from unitoken_jax.model.unitoken import UniTokenModel
from unitoken_jax.model.vqgan import VQModel
from unitoken_jax.sequence.layout import validate_config
from unitoken_jax.sequence.tokenizer import Tokenizer


class Runtime:
    """A model's networks, parameters, tokenizer and mesh: what every function of this room is given.

    `params` is a plain pytree {"siglip", "adapter", "decoder", "vqgan"}. The decoder's layers stand apart,
    as "0", "1", ..., from the beginning: out of a stack XLA copies layers in every step of decoding (on a
    CPU all of them, several times the time of the step; on a TPU some, which it keeps beside the stack), and
    holding both layouts would take the memory of two models. `UniTokenModel` reads either layout;
    `model.decoder.stack_layers` restores the one that training and the model directory have.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Mapping[str, Any],
        tokenizer: Tokenizer,
        *,
        mesh: jax.sharding.Mesh | None = None,
        dtype: Any = None,
        cache_dtype: Any = None,
        manifest: Mapping[str, Any] | None = None,
    ):
        """Takes what is in memory already.

        Args:
          config: of the model; ValueError where it does not go with the tokenizer's vocabulary.
          params: in either layout of the decoder's layers. The mapping itself is not changed; stacked layers
            are copied, once.
          tokenizer: with the control tokens.
          mesh: the devices to spread rows over; None: the default device.
          dtype: of the computation; None: float32 on a CPU, else bfloat16.
          cache_dtype: of keys and values; None: `dtype`. "int8" has scales beside it.
          manifest: of the model directory it came from.
        """
        validate_config(config, tokenizer.vocabulary)
        self.config, self.tokenizer = config, tokenizer
        self.mesh, self.manifest = mesh, dict(manifest or {})
        self.module = UniTokenModel(
            config,
            dtype=_default_dtype() if dtype is None else jnp.dtype(dtype),
            cache_dtype=None if cache_dtype is None else jnp.dtype(cache_dtype),
        )
        # In float32 whatever the rest computes in: a code is the nearest of thousands.
        self.vq = VQModel(config.vq, dtype=jnp.dtype("float32"))
        self.params = dict(params)
        if "decoder" in params:
            self.params["decoder"] = self.run(unstack_layers, params["decoder"])
        self._base_path: str | os.PathLike | None = None  # the model directory, where it came from one
        self._base_params = self.params  # without an adapter

    @classmethod
    def load(
        cls,
        path: str | os.PathLike | None = None,
        *,
        mesh: jax.sharding.Mesh | None = None,
        dtype: Any = None,
        quantize: str | None = None,
        adapter: str | os.PathLike | None = None,
    ) -> Self:
        """Reads the model directory `path`; its parameters are cast to `dtype`. Errors as `load_model`.

        None: the model that `adapter` was trained on, where it is named and that is still there; else
        `quickstart/model` in the current folder where there is one, else the small model inside the package.

        `adapter`: an adapter folder (`with_adapter`).

        `quantize` "int8" or "int4": the decoder's kernels in so many bits, and an int8 cache. A directory of
        `unitoken quantize` has both without being asked.
        """
        change = None if adapter is None else load_adapter(adapter)
        path = model_of(path, change)
        dtype = _default_dtype() if dtype is None else jnp.dtype(dtype)
        config, params, tokenizer, manifest = load_model(
            path, mesh=mesh, dtype=dtype, quantize=quantize, unstacked=True
        )
        with _under(mesh):  # nobody else has what was read, so that each stack can be freed on the way
            params["decoder"] = unstack_layers(params["decoder"], consume=True)
        cache = "int8" if "quantization" in manifest else None
        model = cls(config, params, tokenizer, mesh=mesh, dtype=dtype, cache_dtype=cache, manifest=manifest)
        model._base_path = path
        return model if change is None else model._with(change)

    def with_adapter(self, adapter: str | os.PathLike | None) -> Self:
        """The same model with the adapter folder `adapter` in place of what it has; None: without any.

        The base's arrays are shared, so that many adapters can be had over one model in memory. Raises
        FileNotFoundError where there is none, ValueError where it belongs to another model or does not fit.
        """
        if adapter is not None:
            change = load_adapter(adapter)
            if self._base_path is not None:
                change.check_base(self._base_path)
            return self._with(change)
        model = copy.copy(self)
        model.params = self._base_params
        return model

    def _with(self, adapter: Adapter) -> Self:
        model = copy.copy(self)
        model.params = attach(
            adapter, self.config, self._base_params, mesh=self.mesh, dtype=self.module.dtype
        )
        return model

    @classmethod
    def outline(cls, path: str | os.PathLike | None, adapter: str | os.PathLike | None = None) -> Self:
        """The model of `load(path, adapter=adapter)` without its weights, which takes no time: what a call
        is given can be checked with it. `params` holds shapes, and nothing of the decoder. Errors as
        `load`'s."""
        path = model_of(path, None if adapter is None else load_adapter(adapter))
        config, stored, tokenizer, manifest = open_model(path)
        shapes = {name: tree for name, tree in stored.tree.items() if name != "decoder"}
        return cls(config, shapes, tokenizer, manifest=manifest)

    @property
    def network_params(self) -> dict:
        """`params` without the VQ-GAN's: what `module` reads."""
        return {name: self.params[name] for name in NETWORK if name in self.params}

    @property
    def vq_params(self) -> dict:
        """The VQ-GAN's parameters: what `vq` reads."""
        return self.params["vqgan"]

    def require(self, group: str, purpose: str) -> None:
        """Raises ValueError where the parameter group ("vqgan/decoder") that `purpose` needs is absent."""
        tree: Any = self.params
        for name in group.split("/"):
            tree = tree.get(name) if isinstance(tree, Mapping) else None
        if not tree:
            raise ValueError(
                f"this model directory has no {group} parameters, which {purpose} needs: convert it again "
                "with that part's checkpoint (for vqgan: --vqgan)"
            )

    def rows(self, number: int) -> int:
        """The number of rows of the compiled program that `number` prompts run in."""
        return batch_rows(number, 1 if self.mesh is None else sharding.data_parallel_size(self.mesh))

    def shard_batch(self, tree):
        """Puts host arrays [B, ...] on the devices, their rows spread over the mesh."""
        if self.mesh is None:
            return tree
        rows = jax.sharding.NamedSharding(self.mesh, sharding.spec("batch"))
        return jax.device_put(tree, rows)

    def fetch(self, array) -> np.ndarray:
        """A whole array from the devices as numpy's; where it is spread over processes, all of them call
        this."""
        return sharding.fetch(array)

    def run(self, function, *arguments, **settings):
        """`function(*arguments, **settings)` under the mesh, if there is one."""
        with _under(self.mesh):
            return function(*arguments, **settings)


def _under(mesh: jax.sharding.Mesh | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _default_dtype():
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
