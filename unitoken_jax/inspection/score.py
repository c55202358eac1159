"""The loss of each conversation of a file, as training would see it alone, without dropout."""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import jax

from unitoken_jax.batch import Batch
from unitoken_jax.config import DataConfig, ModelConfig
from unitoken_jax.data.packing import batch_of
from unitoken_jax.generate.vq import encode_example_images
from unitoken_jax.model.lora import whole_kernel
from unitoken_jax.sequence import build
from unitoken_jax.sequence.conversation import parse_conversation
from unitoken_jax.sequence.conversation_file import JsonRecords, scan_json
from unitoken_jax.sequence.errors import ConversationError, RowError
from unitoken_jax.sequence.example import Example
from unitoken_jax.storage.paths import as_path, expand_home
from unitoken_jax.train.loss import LossSums, cross_entropy
from unitoken_jax.unitoken import UniToken

CHUNK = 1024  # supervised positions whose logits exist at one time
_LENGTH_STEP = 256  # rows are padded to multiples of this, so that few programs are compiled


def score(
    model: UniToken | str | os.PathLike | None,
    data: str | os.PathLike,
    on_error: Callable[[RowError], None] | None = None,
    adapter: str | os.PathLike | None = None,
) -> Iterator[dict]:
    """A dict for each conversation of file `data`: index, loss, z_loss, supervised_tokens, length.

    `loss` (cross-entropy in nats) and `z_loss` (logsumexp squared) are means over supervised tokens, None
    where there are none. Discrete tokens are made by the model's own VQ encoder. `on_error` is called with
    the error of each bad conversation, which has no dict; None raises the first, a RowError.
    `model` and `adapter` as of `UniToken.load`, where it is not a model already.
    """
    path = as_path(data)
    records = JsonRecords(os.fspath(path), scan_json(path))
    if not len(records):
        raise ConversationError(f"{path}: holds no conversation")
    model = model if isinstance(model, UniToken) else UniToken.load(model, adapter=adapter)
    params = model.network_params
    for index in range(len(records)):
        try:
            conversation = parse_conversation(records.read(index), records.location(index), path.parent)
            example = build.build_example(conversation, model.tokenizer, model.config)
        except RowError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
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
    model: UniToken | str | os.PathLike | None,
    data: str | os.PathLike,
    out: str | os.PathLike,
    adapter: str | os.PathLike | None = None,
) -> pathlib.Path:
    """Writes `score`'s dicts to file `out`, a JSON object a line, when all are there; returns its path.

    Bad conversations have no line. Raises the first one's RowError when those of all others are written.
    """
    bad: list[RowError] = []
    lines = [json.dumps(result) + "\n" for result in score(model, data, bad.append, adapter)]
    out = pathlib.Path(expand_home(out))
    out.write_text("".join(lines), encoding="utf-8")
    if bad:
        note = f"{len(bad)} of {len(bad) + len(lines)} conversations are bad; {out} has the others' losses"
        raise type(bad[0])(f"{bad[0]}\n{note}", bad[0].reason) from bad[0]
    return out


def _row(example: Example, config: ModelConfig) -> Batch:
    """The example as a batch of one row, padded at the right."""
    length = -(-len(example.tokens) // _LENGTH_STEP) * _LENGTH_STEP
    data = DataConfig(row_length=length, row_crops=len(example.crops), codes="offline")
    return batch_of([[example]], data, config)


@functools.partial(jax.jit, static_argnums=0)
def _sums(module, params: dict, batch: dict) -> LossSums:
    hidden = module.apply({"params": params}, batch, method="hidden")
    head = whole_kernel(params["decoder"]["lm_head"])
    return cross_entropy(hidden, head, batch["labels"], batch["segments"], 0.0, CHUNK)[1]
