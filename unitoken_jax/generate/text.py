"""Conversations -> answers: pictures are read once, text is decoded (greedily or not) to the end of turn."""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unitoken_jax.generate import decode
from unitoken_jax.generate.image import encode_pictures
from unitoken_jax.generate.sampling import check_sampling, stream_keys
from unitoken_jax.host import sequence
from unitoken_jax.host.conversation import Conversation, dialogue

if TYPE_CHECKING:
    from unitoken_jax.model_dir import UniToken

BATCH = 16  # conversations answered at one time
LEAST_ROOM = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """`tokens` int32[n]: what was written, without the end of turn; `text` without control tokens.

    `timing` is that of the batch it was written in.
    """

    text: str
    tokens: np.ndarray
    complete: bool  # the model ended its turn; False: the limit did
    timing: decode.Timing


def answer(
    model: "UniToken",
    conversations: Sequence[Conversation | Sequence],
    *,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> list[Answer]:
    """The next turn of each conversation, in order.

    A conversation is one question's parts (text, PIL images, pathlib.Paths), or a `Conversation` that ends
    with a question. Temperature 0 is greedy, as the published code answers; else an answer is sampled
    and depends on (seed, prompt, its number among equal prompts) alone. `max_tokens` None is the model's
    default.
    Raises ValueError (ConversationError, PictureError) naming the conversation's number and what is wrong.
    """
    if isinstance(conversations, str):
        raise ValueError("conversations is one string; expected a list: [[question]] or [[image, question]]")
    limit = model.config.generation.max_answer_tokens if max_tokens is None else max_tokens
    if limit < 1:
        raise ValueError(f"max_tokens is {limit}; expected at least 1")
    greedy = temperature == 0
    most = model.config.decoder.vocab_size
    top_k, temperature, _ = check_sampling(most if top_k is None else top_k, temperature, most=most)

    prompts = _prompts(model, conversations, batch)
    streams = _streams(prompts)
    # Rows of like lengths together: less padding, fewer compiled shapes.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
    answers: list[Answer | None] = [None] * len(prompts)
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        rows = model.rows(len(group))
        numbers = np.zeros((rows, 2), np.uint32)
        numbers[: len(group)] = streams[group]
        written, timing = model.run(
            decode.write,
            model.module,
            model.network_params,
            model.place(decode.stack([prompts[i] for i in group], rows)),
            decode.Sampling(stream_keys(np.uint32(seed), numbers), np.int32(top_k), np.float32(temperature)),
            np.int32(model.tokenizer.vocabulary.end_of_turn),
            np.int32(limit),
            room=decode.bucket(limit, LEAST_ROOM),
            greedy=greedy,
        )
        for i, tokens in zip(group, model.fetch(written)):
            answers[i] = _answer(model, tokens, timing)
    return answers


def _prompts(model: "UniToken", conversations: Sequence, batch: int) -> list[decode.Prompt]:
    """Every conversation as the model reads it, its pictures' codes made on the device."""
    examples = []
    for number, parts in enumerate(conversations):
        name = f"conversation {number}"
        if isinstance(parts, str):
            raise ValueError(f"{name} is one string; expected a list of its parts: [question]")
        asked = parts if isinstance(parts, Conversation) else dialogue([parts], name)
        examples.append(sequence.prompt(asked, model.tokenizer, model.config))
    if any(len(example.crops) for example in examples):
        model.require("siglip", "reading pictures")
    pictures = [example.pictures for example in examples if len(example.pictures)]
    codes = encode_pictures(model, np.concatenate(pictures), batch) if pictures else None
    prompts, used = [], 0
    for example in examples:
        tokens = example.tokens
        if len(example.pictures):
            own = codes[used : used + len(example.pictures)].reshape(-1)
            used += len(example.pictures)
            code = own[np.maximum(example.code_index, 0)]
            tokens = np.where(example.code_index < 0, tokens, model.tokenizer.vocabulary.code_ids[code])
        prompts.append(decode.Prompt(tokens, example.soft_index, example.crops))
    return prompts


def _streams(prompts: Sequence[decode.Prompt]) -> np.ndarray:
    """uint32[B, 2]: (checksum of the prompt, how many equal ones came before); see `sampling.stream_keys`."""
    checksums = []
    for prompt in prompts:
        picture = b"" if prompt.crops is None else prompt.crops.tobytes()
        checksums.append(zlib.crc32(picture, zlib.crc32(np.asarray(prompt.tokens, np.int32).tobytes())))
    seen, streams = Counter(), []
    for checksum in checksums:
        streams.append((checksum, seen[checksum]))
        seen[checksum] += 1
    return np.array(streams, np.uint32).reshape(-1, 2)


def _answer(model: "UniToken", written: np.ndarray, timing: decode.Timing) -> Answer:
    ends = np.flatnonzero(written == model.tokenizer.vocabulary.end_of_turn)
    stop = ends[0] if len(ends) else np.count_nonzero(written != decode.NOTHING)
    tokens = written[:stop].astype(np.int32)
    return Answer(model.tokenizer.decode(tokens), tokens, bool(len(ends)), timing)
