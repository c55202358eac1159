"""Conversations -> answers: images are read once, text is decoded (greedily or not) to the end of turn."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from unitoken_jax.generate import decode, scheduler
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.sampling import check_sampling
from unitoken_jax.generate.scheduler import BATCH
from unitoken_jax.generate.vq import encode_example_images
from unitoken_jax.sequence import build
from unitoken_jax.sequence.conversation import Conversation, make_conversation

LEAST_ROOM = 32
STREAMED = 4  # tokens between two pieces of a streamed answer


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """`tokens` int32[n]: what was written, without the end of turn; `text` without control tokens.

    `timing` is that of the batch it was written in.
    """

    text: str
    tokens: np.ndarray
    complete: bool  # the model ended its turn; False: the limit did
    timing: decode.Timing


class TextSampling(NamedTuple):
    """How a text's tokens are chosen, checked; see `choice`."""

    top_k: int
    temperature: float
    greedy: bool


def answer(
    model: Runtime,
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
    default. `batch` are written at one time; a finished one makes room for the next.
    Raises ValueError (ConversationError, ImageError) naming the conversation's number and what is wrong.
    """
    sampling, limit = resolve_text_sampling(model, temperature, top_k), token_limit(model, max_tokens)
    prompts, clock = _read(model, conversations, batch), decode.Clock()
    limits = [limit] * len(prompts)
    completions = write_text(model, prompts, limits, sampling, clock, seed=seed, batch=batch)
    tokens = {completion.job: completion.tokens for completion in completions}
    return [_answer(model, tokens[i], clock.timing) for i in range(len(prompts))]


def stream(
    model: Runtime,
    conversations: Sequence[Conversation | Sequence],
    *,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> Iterator[tuple[int, str]]:
    """The answers of `answer` as they are written: (the conversation's number, the next piece of its text).

    What is wrong with the conversations or the settings is raised at once, not at the first piece.
    """
    sampling, limit = resolve_text_sampling(model, temperature, top_k), token_limit(model, max_tokens)
    prompts, clock = _read(model, conversations, batch), decode.Clock()
    limits = [limit] * len(prompts)
    completions = write_text(model, prompts, limits, sampling, clock, seed=seed, batch=batch, every=STREAMED)
    return _pieces(model, completions)


def _read(model: Runtime, conversations: Sequence, batch: int) -> list[decode.Prompt]:
    if isinstance(conversations, str):
        raise ValueError("conversations is one string; expected a list: [[question]] or [[image, question]]")
    return build_prompts(model, conversations, batch)


def token_limit(model: Runtime, max_tokens: int | None) -> int:
    """`max_tokens`, or the model's default. Raises ValueError unless that is a positive number."""
    limit = model.config.generation.max_answer_tokens if max_tokens is None else max_tokens
    if isinstance(limit, bool) or int(limit) != limit or limit < 1:
        raise ValueError(f"max_tokens is {limit!r}; expected a whole number of at least 1")
    return int(limit)


def resolve_text_sampling(model: Runtime, temperature: float, top_k: int | None) -> TextSampling:
    """The settings, checked. Raises ValueError for what means nothing."""
    most = model.config.decoder.vocab_size
    greedy = temperature == 0
    top_k, temperature, _ = check_sampling(most if top_k is None else top_k, temperature, most=most)
    return TextSampling(top_k, temperature, greedy)


def write_text(
    model: Runtime,
    prompts: Sequence[decode.Prompt],
    limits: Sequence[int],
    choice: TextSampling,
    clock: decode.Clock,
    *,
    seed: int,
    batch: int,
    every: int | None = None,
    ends: Sequence[int] = (),
) -> Iterator[scheduler.Completion]:
    """Continues each prompt, by its limit of tokens at most, up to the end of turn or another of `ends`."""
    rules = decode.SamplingParams(
        top_k=np.int32(choice.top_k),
        temperature=np.float32(choice.temperature),
        guidance=np.float32(1),
        forced=np.full(
            decode.bucket_size(max(limits, default=1), LEAST_ROOM), decode.MODEL_CHOOSES, np.int32
        ),
        ids=None,
        ends=np.array([model.tokenizer.vocabulary.end_of_turn, *ends], np.int32),
    )
    jobs = [scheduler.Request(*job) for job in zip(prompts, scheduler.rng_streams(prompts), limits)]
    shape = decode.DecodeSpec(greedy=choice.greedy)
    return scheduler.complete(model, jobs, rules, shape, clock, seed=seed, batch=batch, every=every)


def _pieces(model: Runtime, written: Iterator[scheduler.Completion]) -> Iterator[tuple[int, str]]:
    """(number of the conversation, the next piece of its answer), as they come."""
    told: Counter[int] = Counter()  # characters of each answer that were given
    for job, tokens, done in written:
        text = model.tokenizer.decode(_without_end(model, tokens))
        if not done and text.endswith("\N{REPLACEMENT CHARACTER}"):
            continue  # the rest of a character is still to come
        if len(text) > told[job]:
            yield job, text[told[job] :]
            told[job] = len(text)


def build_prompts(
    model: Runtime,
    conversations: Sequence,
    batch: int,
    begun: Sequence[Sequence] | None = None,
    known: dict[bytes, np.ndarray] | None = None,
) -> list[decode.Prompt]:
    """Every conversation as the model reads it, its images encoded, `batch` at one time.

    `begun`: the parts of each answer so far (`sequence.build.build_prompt`). `known`: codes of images that
    earlier calls have encoded (`vq.encode_example_images`).
    """
    examples = []
    for number, parts in enumerate(conversations):
        answer = begun[number] if begun else ()
        examples.append(
            build.build_prompt(as_asked(parts, number), model.tokenizer, model.config, answer=answer)
        )
    if any(len(example.crops) for example in examples):
        model.require("siglip", "reading images")
    examples = encode_example_images(model, examples, batch, known)
    return [decode.Prompt(example.tokens, example.image_feature_index, example.crops) for example in examples]


def as_asked(parts, number: int) -> Conversation:
    """Conversation number `number` of a call: a `Conversation`, or a question's parts."""
    if isinstance(parts, Conversation):
        return parts
    if isinstance(parts, str):
        raise ValueError(f"conversation {number} is one string; expected a list of its parts: [question]")
    return make_conversation([parts], f"conversation {number}")


def _answer(model: Runtime, written: np.ndarray, timing: decode.Timing) -> Answer:
    tokens = _without_end(model, written)
    return Answer(model.tokenizer.decode(tokens), tokens, len(tokens) < len(written), timing)


def _without_end(model: Runtime, written: np.ndarray) -> np.ndarray:
    """What was written, less the end of turn where it has one."""
    ended = len(written) > 0 and written[-1] == model.tokenizer.vocabulary.end_of_turn
    return written[:-1] if ended else written
