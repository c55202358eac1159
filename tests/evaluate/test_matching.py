"""Free text -> option, yes or no, reading: VLMEvalKit's rules on hand-made answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unitoken_jax.evaluate.understanding.matching import FORMULA, match_option, match_yes_no, reads_right

OPTIONS = {"A": "a red circle", "B": "a blue square", "C": "nothing", "D": "a red circle and a star"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("(B).", "B"),
        ("**B**", "B"),
        ("The answer is B", "B"),
        ("B. a blue square", "B"),
        ("B a b c", "B"),  # the letter is among the last four words
        ("B a b c d", None),  # it is not
        ("A or B", None),
        ("A red thing, so B", None),  # "A" is a letter too
        ("b", None),
        ("选项B", None),
        ("\uff22", None),  # a full-width B
        ("答案是 B 。", "B"),
        ("E", None),
        ("it is a blue square", "B"),
        ("Blue: A BLUE SQUARE", "A"),  # the article is a letter, and the rule wants no more
        ("THE BLUE SQUARE IS A THING WITH FOUR CORNERS", None),
        ("IT IS a BLUE SQUARE", "B"),
        ("a red circle", "A"),
        ("a red circle and a star", None),  # contains A's text too
        ("a blue square " * 9, None),  # longer than twice all options
        ("", None),
        ("Z", "Z"),
        ("Cannot determine the answer", "Z"),
        ("B: Cannot determine the answer", "Z"),
        ("Failed to obtain answer via API", None),
    ],
)
def test_options(answer, expected):
    assert match_option(answer, OPTIONS) == expected


@given(
    st.sampled_from("ABCD"), st.sampled_from(["{}", "({})", "{}.", "{}:", " {}\n", "Answer: {}", "**{}**"])
)
def test_a_lone_letter_is_found_in_any_dress(letter, dress):
    assert match_option(dress.format(letter), OPTIONS) == letter


@given(st.text("ABCDZyesnor .,-/\n17", max_size=40))
def test_a_match_is_an_option_or_a_refusal(answer):
    assert match_option(answer, OPTIONS) in (*OPTIONS, "Z", None)
    assert match_yes_no(answer) in ("Yes", "No", None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "Yes"),
        ("No.", "No"),
        ("yes, it is", "Yes"),
        ("No, there is no dog", "No"),
        ("Yes and no", None),
        ("yes/no", None),
        ("Not at all", None),
        ("eyes", None),
        ("yes-man", "Yes"),  # the hyphen becomes a space
        ("yes-man - well", None),  # beside a space somewhere, hyphens vanish
        ("yes!1,000", None),  # 1,000 in the text: marks vanish
        ("yes.it", None),  # a full stop vanishes, unless
        ("yes.5 no", "No"),  # a digit follows
        ("." * 32 + "yes", "Yes"),
        ("." * 33 + "yes", None),  # VLMEvalKit's count of 32
        ("", None),
    ],
)
def test_yes_no(answer, expected):
    assert match_yes_no(answer) == expected


@pytest.mark.parametrize(
    ("answers", "prediction", "category", "expected"),
    [
        (["CENTRE"], "it says Centre!", "Regular Text Recognition", True),
        (["two words"], "two\nwords", "Regular Text Recognition", True),
        (["two words"], "twowords", "Regular Text Recognition", False),
        (["a", "bc"], "xbcx", "Scene Text-centric VQA", True),
        (["x + y"], "x+y = 2", FORMULA, True),
        (["X+y"], "x+y", FORMULA, False),
        (["x"], "", FORMULA, False),
    ],
)
def test_readings(answers, prediction, category, expected):
    assert reads_right(answers, prediction, category) is expected
