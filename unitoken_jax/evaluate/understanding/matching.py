"""Free text -> the option, the yes or no, or the reading it means: VLMEvalKit's rules without a judge.

They were read from github.com/open-compass/VLMEvalKit and stated anew here. Its rules have changed, and move
scores by many points, so they have names (`RULES`). Dates and sources:

    2025-03  ms-vlmeval 0.0.15 and 0.0.16 (a packaged VLMEvalKit; `utils/matching_util.py` of 2024-07-24,
             `smp/misc.py` of 2025-03-14), as in April 2025, when the paper came out
    2025-06  0.0.18 (2025-06-27): another pattern of full stops in `smp/misc.py`
    2025-08  pull request 1175 (of 2025-07-23, in on 2025-08-04): a letter counts among the last words only,
             and a long text names no option; so in 0.0.19 (2025-11-25) and 0.0.20 (2026-05-11)
    2026-05  pull request 1552 (of 2026-05-21): a search for "answer is X" after that; in no rules here

Left out of both is what its environment variable VERBOSE changes (an A among more than three words).
"""

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence

REFUSED = "Z"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FAILED = "Failed to obtain answer via API"
_TO_SPACE = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOPS = 32  # VLMEvalKit passes re.UNICODE, which is 32, where the number of replacements goes
FORMULA = "Handwritten Mathematical Expression Recognition"


@dataclasses.dataclass(frozen=True)
class MatchingRules:
    """What VLMEvalKit took for an answer at some date.

    Args:
        name: what a user calls them; in recipes, results and reports.
        last_words: among how many words at the end an option's letter counts; None: anywhere.
        longest_text: how many times as long as all options an answer may be, lower-cased, whose option is
            told by its text; None: any length.
        full_stop: the full stops that are dropped before "yes" and "no" are looked for.
    """

    name: str
    last_words: int | None
    longest_text: int | None
    full_stop: re.Pattern[str]


RULES = {
    rules.name: rules
    for rules in (
        MatchingRules("vlmevalkit-2025-03", None, None, re.compile(r"\.(?!\d)")),
        MatchingRules("vlmevalkit-2025-08", 4, 2, re.compile(r"(?<!\d)\.(?!\d)")),
    )
}
PAPER_RULES = RULES["vlmevalkit-2025-03"]  # those of the paper's time, and so the default
UNNAMED_RULES = RULES["vlmevalkit-2025-08"]  # what recipes and results mean that were written without a name


def find_rules(name: str) -> MatchingRules:
    """The rules called `name`; ValueError listing them."""
    if name not in tuple(RULES):  # a recipe may hold anything
        raise ValueError(f"unknown rules {name!r}; known: {', '.join(RULES)}")
    return RULES[name]


def match_option(answer: str, options: Mapping[str, str], rules: MatchingRules = PAPER_RULES) -> str | None:
    """The letter of `options` that `answer` means, REFUSED, or None where it means none or several."""
    return _letter(answer, options, rules) or _option_text(answer, options, rules)


def _letter(answer: str, options: Mapping[str, str], rules: MatchingRules) -> str | None:
    """The one option letter among the words that count in `answer`, REFUSED for a refusal, else None."""
    if _FAILED in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    words = answer.translate(_TO_SPACE).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1:
        first = 0 if rules.last_words is None else len(words) - rules.last_words
        return named[0] if words.index(named[0]) >= first else None
    return REFUSED if not named and REFUSED in words else None


def _option_text(answer: str, options: Mapping[str, str], rules: MatchingRules) -> str | None:
    """The letter of the one option whose text stands in `answer`, if that is not too long; else None."""
    answer = answer.lower()  # may be longer then: a capital I with a dot becomes two characters
    length = sum(len(text) for text in options.values())
    if rules.longest_text is not None and len(answer) > rules.longest_text * length:
        return None
    letters = [letter for letter, text in options.items() if text.lower() in answer]
    return letters[0] if len(letters) == 1 else None


def match_yes_no(answer: str, rules: MatchingRules = PAPER_RULES) -> str | None:
    """ "Yes", "No", or None where `answer` says neither or both."""
    text = answer.lower()
    glued = not _DIGIT_COMMA.search(text)
    plain = text
    for mark in _PUNCTUATION:
        # A mark that stands beside a space somewhere is dropped everywhere, others become a space.
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, " " if glued and not beside_space else "")
    words = rules.full_stop.sub("", plain, count=_FULL_STOPS).split()
    if ("yes" in words) == ("no" in words):
        return None
    return "Yes" if "yes" in words else "No"


def reads_right(answers: Sequence[str], prediction: str, category: str) -> bool:
    """OCRBench: whether one of `answers` stands in `prediction`; case and, in formulas, spaces aside."""

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if category == FORMULA else text.lower()

    return any(plain(answer) in plain(prediction) for answer in answers)


def other_letter(answer: str) -> str | None:
    """ "А (Cyrillic capital letter a)" where `answer` is one letter that is not ASCII, else None.

    It may look like an option, but which one is meant is not for us to say.
    """
    letter = answer.translate(_TO_SPACE).strip()
    if len(letter) != 1 or letter.isascii() or not letter.isalpha():
        return None
    return f"{letter} ({unicodedata.name(letter, 'no name').capitalize()})"
