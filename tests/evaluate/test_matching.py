"""Free text -> option, yes or no, reading: VLMEvalKit's rules on hand-made answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unitoken_jax.evaluate.understanding.matching import (
    FORMULA,
    PAPER_RULES,
    RULES,
    find_rules,
    match_option,
    match_yes_no,
    reads_right,
)

OPTIONS = {"A": "a red circle", "B": "a blue square", "C": "nothing", "D": "a red circle and a star"}
MARCH, AUGUST = (RULES[f"vlmevalkit-2025-{month}"] for month in ("03", "08"))
LONG = "THE BLUE SQUARE IS A THING WITH FOUR CORNERS"  # a text and a letter, far from the end


@pytest.mark.parametrize(
    ("answer", "march", "august"),
    [
        ("B", "B", "B"),
        ("(B).", "B", "B"),
        ("**B**", "B", "B"),
        ("The answer is B", "B", "B"),
        ("B. a blue square", "B", "B"),
        ("B a b c", "B", "B"),  # the letter is among the last four words
        ("B a b c d", "B", None),  # it is not
        ("option B is the right one because of the picture", "B", None),
        ("B " * 9 + "is it", "B", None),  # the first of them counts
        ("A or B", None, None),
        ("A red thing, so B", None, None),  # "A" is a letter too
        ("A nice thing: it is a blue square", "A", "B"),  # and an article, which counts where any word does
        ("b", None, None),
        ("选项B", None, None),
        ("\uff22", None, None),  # a full-width B
        ("答案是 B 。", "B", "B"),
        ("答案是\u3000B", "B", "B"),  # an ideographic space is a space
        ("E", None, None),
        ("it is a blue square", "B", "B"),
        ("Blue: A BLUE SQUARE", "A", "A"),  # the article is a letter, and the rule wants no more
        (LONG, "A", None),
        ("IT IS a BLUE SQUARE", "B", "B"),
        ("a red circle", "A", "A"),
        ("a red circle and a star", None, None),  # contains A's text too
        ("a blue square " * 9, "B", None),  # longer than twice all options
        ("a blue square".ljust(110), "B", "B"),  # as long as twice all options
        ("a blue square".ljust(111), "B", None),
        ("a blue square".ljust(109) + "\u0130", "B", None),  # a letter that is two when lower-cased
        ("", None, None),
        ("Z", "Z", "Z"),
        ("Z is it, or not, so what", "Z", "Z"),  # anywhere, by both
        ("Z, and so a blue square", "Z", "Z"),
        ("Cannot determine the answer", "Z", "Z"),
        ("B: Cannot determine the answer", "Z", "Z"),
        ("Failed to obtain answer via API", None, None),
        ("Failed to obtain answer via API: B, a blue square", "B", "B"),  # the letter does not count
    ],
)
def test_options(answer, march, august):
    assert (match_option(answer, OPTIONS, MARCH), match_option(answer, OPTIONS, AUGUST)) == (march, august)
    assert match_option(answer, OPTIONS) == march  # the paper's time


def test_rules_have_names():
    assert find_rules("vlmevalkit-2025-03") is MARCH is PAPER_RULES
    with pytest.raises(
        ValueError, match="unknown rules '2025'; known: vlmevalkit-2025-03, vlmevalkit-2025-08"
    ):
        find_rules("2025")


@given(
    st.sampled_from("ABCD"), st.sampled_from(["{}", "({})", "{}.", "{}:", " {}\n", "Answer: {}", "**{}**"])
)
def test_a_lone_letter_is_found_in_any_dress(letter, dress):
    assert match_option(dress.format(letter), OPTIONS) == letter


@given(st.text("ABCDZyesnor .,-/\n17", max_size=40), st.sampled_from(list(RULES.values())))
def test_a_match_is_an_option_or_a_refusal(answer, rules):
    assert match_option(answer, OPTIONS, rules) in (*OPTIONS, "Z", None)
    assert match_yes_no(answer, rules) in ("Yes", "No", None)


@pytest.mark.parametrize("rules", RULES.values(), ids=list(RULES))
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
def test_yes_no(answer, expected, rules):
    assert match_yes_no(answer, rules) == expected


@pytest.mark.parametrize(
    ("answer", "march", "august"),
    [
        ("1. " * 31 + "yes.", "Yes", "Yes"),
        ("1. " * 32 + "yes.", None, "Yes"),  # a full stop after a digit is one of March's 32
        ("\u0663. " * 32 + "no.", None, "No"),  # an Arabic three is a digit
        ("1. " * 99 + "." * 32 + "no.", None, None),
    ],
)
def test_full_stops_after_digits_count_in_march_only(answer, march, august):
    assert (match_yes_no(answer, MARCH), match_yes_no(answer, AUGUST)) == (march, august)


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
