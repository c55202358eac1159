"""Conversations -> answers: images are read once, text is decoded (greedily or not) to the end of turn."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from unitoken_jax.generate import decode, scheduler
from unitoken_jax.generate.row_pool import DecodePlan, Request, TokenSampling
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.sampling import check_sampling
from unitoken_jax.generate.scheduler import BATCH
from unitoken_jax.generate.timing import Timing
from unitoken_jax.generate.vq import encode_example_images
from unitoken_jax.sequence import build
from unitoken_jax.sequence.conversation import Conversation, make_conversation
from unitoken_jax.sequence.example import Example
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES

MIN_ANSWER_BUCKET = 32  # the smallest number of tokens that a program for answers has room for
STREAM_EVERY = 4  # tokens between two pieces of a streamed answer


@dataclasses.dataclass(frozen=True, eq=False)
class TextResult:
    """An answer. `tokens` int32[n]: what was written, without the end of turn; `text`: it as text, without
    control tokens. `complete`: the model ended its turn; False: the limit did. `timing` is that of the batch
    it was written in."""

    text: str
    tokens: np.ndarray
    complete: bool
    timing: Timing


class TextSampling(NamedTuple):
    """How a text's tokens are chosen, checked (`resolve_text_sampling`)."""

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
) -> list[TextResult]:
    """The next turn of each conversation, in order.

    Args:
      conversations: each is one question's parts (text, PIL images, pathlib.Paths), or a `Conversation` that
        ends with a question.
      max_tokens: of an answer; None: the model's default.
      temperature: 0 is greedy, as the published code answers; else an answer is sampled and depends on (seed,
        prompt, its number among equal prompts) alone.
      top_k: the likeliest tokens that are sampled from; None: all.
      batch: answers written at one time; a finished one makes room for the next.
    Raises ValueError (ConversationError, ImageError) naming the conversation's number and what is wrong.
    """
    session = scheduler.DecodeSession(model, seed, batch)
    completions = _write_answers(session, conversations, max_tokens, temperature, top_k)
    tokens = {completion.request: completion.tokens for completion in completions}
    return [_text_result(session, tokens[i]) for i in range(len(tokens))]


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

    Args are `answer`'s. What is wrong with them is raised at once, not at the first piece.
    """
    session = scheduler.DecodeSession(model, seed, batch)
    return _pieces(
        model,
        _write_answers(session, conversations, max_tokens, temperature, top_k, yield_every=STREAM_EVERY),
    )


def _write_answers(
    session: scheduler.DecodeSession,
    conversations: Sequence,
    max_tokens: int | None,
    temperature: float,
    top_k: int | None,
    yield_every: int | None = None,
) -> Iterator[scheduler.Completion]:
    """Checks and reads at once what `answer` and `stream` are given; the answers' tokens as they come."""
    limit, sampling = check_settings(session.model, max_tokens, temperature, top_k)
    check_conversations(conversations)
    prompts = build_prompts(session.model, conversations, session.batch)
    return write_text(session, prompts, [limit] * len(prompts), sampling, yield_every=yield_every)


def check_settings(
    model: Runtime, max_tokens: int | None = None, temperature: float = 0.0, top_k: int | None = None
) -> tuple[int, TextSampling]:
    """(limit of an answer, how its tokens are chosen). Raises ValueError for what means nothing."""
    return token_limit(model, max_tokens), resolve_text_sampling(model, temperature, top_k)


def check_conversations(conversations: Sequence) -> None:
    """Raises ValueError for one string, which would be read letter by letter."""
    if isinstance(conversations, str):
        raise ValueError("conversations is one string; expected a list: [[question]] or [[image, question]]")


def token_limit(model: Runtime, max_tokens: int | None) -> int:
    """`max_tokens`, or the model's default. Raises ValueError unless that is a positive number."""
    limit = model.config.generation.max_answer_tokens if max_tokens is None else max_tokens
    if isinstance(limit, bool) or int(limit) != limit or limit < 1:
        raise ValueError(f"max_tokens is {limit!r}; expected a whole number of at least 1")
    return int(limit)


def resolve_text_sampling(model: Runtime, temperature: float, top_k: int | None) -> TextSampling:
    """The settings, checked; `top_k` None: all tokens. Raises ValueError for what means nothing."""
    vocab_size = model.config.decoder.vocab_size
    greedy = temperature == 0
    top_k, temperature, _ = check_sampling(
        vocab_size if top_k is None else top_k, temperature, choices=vocab_size
    )
    return TextSampling(top_k, temperature, greedy)


def write_text(
    session: scheduler.DecodeSession,
    prompts: Sequence[decode.Prompt],
    limits: Sequence[int],
    sampling: TextSampling,
    *,
    ends: Sequence[int] = (),
    yield_every: int | None = None,
) -> Iterator[scheduler.Completion]:
    """Continues each prompt, by its limit of tokens at most, up to the end of turn or another of `ends`."""
    ends = (session.model.tokenizer.vocabulary.end_of_turn, *ends)
    chosen = TokenSampling(session.seed, sampling.top_k, sampling.temperature, ends=ends)
    streams = scheduler.rng_streams(prompts)
    requests = [Request(*fields, chosen) for fields in zip(prompts, streams, limits)]
    plan = text_plan(max(limits, default=1), len(ends), sampling.greedy)
    return scheduler.complete(session, requests, plan, yield_every)


def text_plan(limit: int, ends: int, greedy: bool = False) -> DecodePlan:
    """How texts of up to `limit` tokens are written together, each ended by one of `ends` ids at most."""
    room = decode.bucket_size(limit, MIN_ANSWER_BUCKET)
    forced = np.full(room, MODEL_CHOOSES, np.int32)
    return DecodePlan(forced, ends=ends, spec=decode.DecodeSpec(greedy=greedy))


def _pieces(model: Runtime, completions: Iterator[scheduler.Completion]) -> Iterator[tuple[int, str]]:
    """(number of the conversation, the next piece of its answer), as they come."""
    sent: Counter[int] = Counter()  # characters of each answer
    for request, tokens, done in completions:
        text = model.tokenizer.decode(without_end(model, tokens))
        if not done and text.endswith("\N{REPLACEMENT CHARACTER}"):
            continue  # the rest of a character is still to come
        if len(text) > sent[request]:
            yield request, text[sent[request] :]
            sent[request] = len(text)


def build_prompts(
    model: Runtime,
    conversations: Sequence,
    batch: int,
    begun: Sequence[Sequence] | None = None,
    known: dict[bytes, np.ndarray] | None = None,
) -> list[decode.Prompt]:
    """Every conversation as the model reads it, its images encoded, `batch` at one time.

    `begun`: what each answer consists of so far (`answer` of `sequence.build.build_prompt`). `known`: codes
    of images that earlier calls have encoded (`vq.encode_example_images`).
    """
    examples = build_examples(model, conversations, begun)
    examples = encode_example_images(model, examples, batch, known)
    return [decode.Prompt(example.tokens, example.image_feature_index, example.crops) for example in examples]


def build_examples(
    model: Runtime, conversations: Sequence, begun: Sequence[Sequence] | None = None
) -> list[Example]:
    """Every conversation as tokens and crops, as for `build_prompts`; `Runtime.outline` is model enough.

    Raises ValueError naming the conversation's number, or its file and line, and what is wrong.
    """
    examples = []
    for number, parts in enumerate(conversations):
        answer = begun[number] if begun else ()
        examples.append(
            build.build_prompt(as_conversation(parts, number), model.tokenizer, model.config, answer=answer)
        )
    if any(len(example.crops) for example in examples):
        model.require("siglip", "reading images")
    return examples


def as_conversation(parts, number: int) -> Conversation:
    """Conversation number `number` of a call: a `Conversation`, or a question's parts."""
    if isinstance(parts, Conversation):
        return parts
    if isinstance(parts, str):
        raise ValueError(f"conversation {number} is one string; expected a list of its parts: [question]")
    return make_conversation([parts], f"conversation {number}")


def _text_result(session: scheduler.DecodeSession, written: np.ndarray) -> TextResult:
    tokens = without_end(session.model, written)
    text = session.model.tokenizer.decode(tokens)
    return TextResult(text, tokens, len(tokens) < len(written), session.clock.timing)


def without_end(model: Runtime, written: np.ndarray) -> np.ndarray:
    """`written` int32[n] without the end of turn, if it ends with one."""
    ended = len(written) > 0 and written[-1] == model.tokenizer.vocabulary.end_of_turn
    return written[:-1] if ended else written
