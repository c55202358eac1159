"""The unified model: a row of tokens, some of them replaced by adapted SigLIP features, decoded."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unitoken_jax.batch import NO_LABEL
from unitoken_jax.config import ModelConfig
from unitoken_jax.model.adapter import Adapter
from unitoken_jax.model.decoder import Cache, Decoder, init_cache
from unitoken_jax.model.layers import Dtype, Remat
from unitoken_jax.model.sharding import shard
from unitoken_jax.model.siglip import Siglip
from unitoken_jax.model.vqgan import VQModel


class UniTokenModel(nn.Module):
    """SigLIP, adapter and decoder. Methods are called with `module.apply({"params": p}, ..., method=...)`.

    Parameters: siglip, adapter, decoder; a "vqgan" beside them in `p` is not read. `dtype` is that of the
    computation, `cache_dtype` that of keys and values in the cache (None: `dtype`; int8 has scales beside
    it). `remat` and `scan` are `layers.scan_layers`'s, `kernel` and `frozen_prefix_length` the Decoder's.
    """

    config: ModelConfig
    dtype: Dtype = jnp.float32
    remat: Remat = "none"
    scan: bool = True
    kernel: str = "xla"
    frozen_prefix_length: int = 0
    cache_dtype: Dtype | None = None

    def setup(self):
        c = self.config
        self.siglip = Siglip(c.siglip, self.dtype, self.remat, self.scan)
        self.adapter = Adapter(c.decoder.width, self.dtype)
        self.decoder = Decoder(
            c.decoder, self.dtype, self.remat, self.scan, self.kernel, self.frozen_prefix_length
        )

    def __call__(self, batch, deterministic: bool = True) -> jax.Array:
        """Batch -> logits float32[B, T, V]. Training goes through `hidden` and a chunked loss instead."""
        return self.logits(self.hidden(batch, deterministic))

    def init_cache(self, rows: int, length: int) -> Cache:
        """Empty cache for `rows` rows of up to `length` tokens."""
        return init_cache(self.config.decoder, rows, length, self.cache_dtype or self.dtype)

    def features(self, crops: jax.Array) -> jax.Array:
        """uint8[B, C, S, S, 3] -> [B, C * P, D]: what `image_feature_index` counts in."""
        B, C = crops.shape[:2]
        features = self.siglip(crops.reshape(B * C, *crops.shape[2:]))
        return self.adapter(features.reshape(B, -1, features.shape[-1]))

    def embed(self, tokens: jax.Array, image_feature_index=None, features=None) -> jax.Array:
        """Embeddings [B, T, D] of `tokens` int32[B, T]; where `image_feature_index` int32[B, T] is not -1,
        that row of `features` [B, C * P, D] in place of the token's."""
        x = self.decoder.embed(tokens)
        if features is None or features.shape[1] == 0:
            return x
        selected = jnp.take_along_axis(features, jnp.maximum(image_feature_index, 0)[..., None], axis=1)
        return shard(jnp.where(image_feature_index[..., None] < 0, x, selected), "batch", "seq", "act_embed")

    def hidden(self, batch, deterministic: bool = True) -> jax.Array:
        """Hidden states [B, T, D], after the final norm, of a Batch (batch.py), which may lack `crops`.

        ValueError where it has images whose codes are not in its tokens yet (`insert_vq_tokens`).
        """
        if "images" in batch:
            raise ValueError(
                "the batch has images to encode: pass it through model.unitoken.insert_vq_tokens first"
            )
        crops = batch.get("crops")
        features = None if crops is None or crops.shape[1] == 0 else self.features(crops)
        x = self.embed(batch["tokens"], batch.get("image_feature_index"), features)
        return self.decoder(x, batch["segments"], batch["positions"], deterministic)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> logits float32[..., V]."""
        return self.decoder.logits(hidden)

    def extend(self, tokens, positions, cache: Cache, image_feature_index=None, features=None):
        """Prefill or decode: int32[B, T] tokens at int32[B, T] positions -> (hidden [B, T, D], cache).

        A token's cache slot is its position, and a query at position p sees the slots <= p. So rows may be
        padded at the right: what is written beyond a row's length is never seen before it is overwritten.
        Positions beyond the cache are not stored; the caller sizes it (`decoder.init_cache`).
        """
        return self.decoder.extend(self.embed(tokens, image_feature_index, features), positions, cache)


def insert_codes(tokens, labels, code_index, codes, code_ids) -> tuple[Any, Any]:
    """VQ codes into token rows: (`tokens`, `labels`) with the codes' ids where `code_index` points.

    Works on numpy arrays on the host and on (traced) jax arrays alike.

    Args:
      tokens: int32[..., T].
      labels: int32[..., T]; what is not learnt (NO_LABEL) stays so.
      code_index: int32[..., T]; which of the row's codes goes here, NO_INDEX: none.
      codes: int32[..., K]; the row's codes, those of all its images one after another.
      code_ids: int32[codes]; the token id of each code.
    """
    xp = codes.__array_namespace__()
    ids = xp.take_along_axis(xp.asarray(code_ids)[codes], xp.maximum(code_index, 0), axis=-1)
    learnt = (code_index >= 0) & (labels != NO_LABEL)
    return xp.where(code_index >= 0, ids, tokens), xp.where(learnt, ids, labels)


def insert_vq_tokens(params, config: ModelConfig, code_ids: jax.Array, batch):
    """Encodes a batch's `images` and puts the codes' token ids where `code_index` points; pure.

    `params` holds "vqgan"; `code_ids` int32[codes] is the vocabulary's. Returns the batch with `tokens`
    filled, `labels` too where they are not -1, and without `images` and `code_index`. A batch without
    images comes back as it is. No gradient flows into the tokenizer.
    """
    if "images" not in batch:
        return batch
    batch = dict(batch)
    images, index = batch.pop("images"), batch.pop("code_index")
    B = len(images)
    if images.shape[1] == 0:
        return batch
    model = VQModel(config.vq)

    def tokenize(images: jax.Array) -> jax.Array:
        codes: Any = model.apply({"params": params["vqgan"]}, images, method="tokenize")
        return codes.reshape(B, -1)

    # One image of every row at a time: at 512 px each needs half a gigabyte for its activations.
    codes = jax.lax.map(tokenize, images.swapaxes(0, 1)).swapaxes(0, 1).reshape(B, -1)
    batch["tokens"], batch["labels"] = insert_codes(batch["tokens"], batch["labels"], index, codes, code_ids)
    return batch
