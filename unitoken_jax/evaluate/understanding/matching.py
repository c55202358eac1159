"""Free text -> the option, the yes or no, or the reading it means: VLMEvalKit's rules without a judge.

They were read from github.com/open-compass/VLMEvalKit and stated anew here. Left out is its later search
for "answer is X": newer than the paper, and it takes the first letter of "answer is blue" for option B.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

REFUSED = "Z"
_LAST_WORDS = 4  # a letter counts as an answer among these; before them it is more likely an article
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
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32  # VLMEvalKit passes re.UNICODE, which is 32, where the number of replacements goes
FORMULA = "Handwritten Mathematical Expression Recognition"


def match_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of `options` that `answer` means, REFUSED, or None where it means none or several."""
    return _letter(answer, options) or _option_text(answer, options)


def _letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The one option letter among the last words of `answer`, REFUSED for a refusal, else None."""
    if _FAILED in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    words = answer.translate(_TO_SPACE).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
        return named[0]
    return REFUSED if not named and REFUSED in words else None


def _option_text(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the one option whose text stands in `answer`, if that is not much longer; else None."""
    if len(answer) > 2 * sum(len(text) for text in options.values()):
        return None
    letters = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return letters[0] if len(letters) == 1 else None


def match_yes_no(answer: str) -> str | None:
    """ "Yes", "No", or None where `answer` says neither or both."""
    text = answer.lower()
    glued = not _DIGIT_COMMA.search(text)
    plain = text
    for mark in _PUNCTUATION:
        # A mark that stands beside a space somewhere is dropped everywhere, others become a space.
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, " " if glued and not beside_space else "")
    words = _FULL_STOP.sub("", plain, count=_FULL_STOPS).split()
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
