"""The loss of each conversation of a file, as training would see it alone, without dropout."""

import functools
import json
import os
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from unitoken_jax.batch import Batch
from unitoken_jax.config import DataConfig, ModelConfig
from unitoken_jax.data.packing import batch_of
from unitoken_jax.generate.vq import encode_example_images
from unitoken_jax.sequence import build
from unitoken_jax.sequence.conversation_file import read_conversations
from unitoken_jax.sequence.example import Example
from unitoken_jax.train.loss import LossSums, cross_entropy
from unitoken_jax.unitoken import UniToken

CHUNK = 1024  # supervised positions whose logits exist at one time
_LENGTH_STEP = 256  # rows are padded to multiples of this, so that few programs are compiled


def score(model: UniToken | str | os.PathLike, data: str | os.PathLike) -> Iterator[dict]:
    """A dict for each conversation of file `data`: index, loss, z_loss, supervised_tokens, length.

    `loss` (cross-entropy in nats) and `z_loss` (logsumexp squared) are means over supervised tokens, None
    where there are none. Discrete tokens are made by the model's own VQ encoder.
    Raises ConversationError or ImageError at a bad example.
    """
    model = model if isinstance(model, UniToken) else UniToken.load(model)
    params = model.network_params
    for index, conversation in enumerate(read_conversations(data)):
        example = build.build_example(conversation, model.tokenizer, model.config)
        (example,) = encode_example_images(model, [example], 1)
        row = _row(example, model.config)
        sums = jax.device_get(model.run(_sums, model.module, params, row))
        count = int(sums.count.sum())
        yield {
            "index": index,
            "loss": float(sums.loss.sum() / count) if count else None,
            "z_loss": float(sums.z / count) if count else None,
            "supervised_tokens": count,
            "length": len(example.tokens),
        }


def score_file(
    model: UniToken | str | os.PathLike, data: str | os.PathLike, out: str | os.PathLike
) -> pathlib.Path:
    """Writes `score`'s dicts to file `out`, a JSON object a line, when all are there; returns its path."""
    lines = [json.dumps(result) + "\n" for result in score(model, data)]
    out = pathlib.Path(out)
    out.write_text("".join(lines), encoding="utf-8")
    return out


def _row(example: Example, config: ModelConfig) -> Batch:
    """The example as a batch of one row, padded at the right."""
    length = -(-len(example.tokens) // _LENGTH_STEP) * _LENGTH_STEP
    data = DataConfig(row_length=length, row_crops=len(example.crops), codes="offline")
    return batch_of([[example]], data, config)


@functools.partial(jax.jit, static_argnums=0)
def _sums(module, params: dict, batch: dict) -> LossSums:
    hidden = module.apply({"params": params}, batch, method="hidden")
    head = jnp.asarray(params["decoder"]["lm_head"]["kernel"])
    return cross_entropy(hidden, head, batch["labels"], batch["segments"], 0.0, CHUNK)[1]
