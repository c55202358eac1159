"""How people and benchmarks put a question of the small world: letter case, marks, options, requests."""

import dataclasses
import random

from unitoken_jax.scenes.questions import CAPTIONS, NOTHING, NUMBERS, Question
from unitoken_jax.scenes.scene import COLOURS, DIGITS, PLACES, SHAPES

# What follows a question in benchmarks (as `evaluate.understanding.prompts` and MME put it).
YES_OR_NO = " Please answer yes or no."
_ONE_WORD = "\nAnswer the question using a single word or phrase."
_SELECT = "Please select the correct answer from the options above. \n"
_LETTER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCD"


def vary_wording(text: str, rng: random.Random) -> str:
    """A question or request as people write it: with a capital letter, without its mark, with a full stop."""
    if rng.random() < 0.35:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.1:
        text = text[:-1] if text.endswith("?") else text + "."
    return text


def options_for(question: Question, rng: random.Random) -> list[str] | None:
    """2 to 4 different answers to `question`, the true one among them, in random order; None: it has none."""
    answer = question.answer
    pools: tuple[tuple[str, ...], ...] = (tuple(COLOURS), SHAPES, NUMBERS, PLACES, DIGITS)
    pools += (("yes", "no"), ("left", "right"), ("above", "below"))
    for pool in pools:
        if answer in pool:
            others = rng.sample([option for option in pool if option != answer], min(3, len(pool) - 1))
            return rng.sample([answer, *others], len(others) + 1)
    return None


def multiple_choice(question: Question, options: list[str], letter_only: bool) -> Question:
    """`question` with `options`, in the words of VLMEvalKit, or in those that ask for a letter directly."""
    lines = [f"Question: {question.text}\n", "Options:\n"]
    lines += [f"{letter}. {option}\n" for letter, option in zip(LETTERS, options)]
    text = "".join([*lines, _LETTER if letter_only else _SELECT])
    return Question(question.kind, text, LETTERS[options.index(question.answer)])


def in_benchmark_words(question: Question, rng: random.Random) -> Question:
    """The question as a benchmark would put it: with options, or with a request for yes, no or one word."""
    if question.kind in CAPTIONS or question.answer == NOTHING:
        return question
    if question.answer in ("yes", "no") and rng.random() < 0.5:
        return dataclasses.replace(question, text=question.text + YES_OR_NO)
    if (options := options_for(question, rng)) and rng.random() < 0.75:
        return multiple_choice(question, options, letter_only=rng.random() < 0.3)
    return dataclasses.replace(question, text=question.text + _ONE_WORD)
