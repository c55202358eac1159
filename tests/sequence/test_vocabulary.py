"""Token ids by role."""

import numpy as np
import pytest

from unitoken_jax.sequence import vocabulary
from unitoken_jax.sequence.vocabulary import Vocabulary, code_name, control_names, size_name


def shuffled(codes: int, seed: int = 0) -> dict[str, int]:
    names = control_names(codes)
    return {name: int(i) for name, i in zip(names, np.random.default_rng(seed).permutation(len(names) + 7))}


def test_names():
    assert code_name(0) == "IMGIMGAZ"
    assert code_name(507) == "IMGIMGFAHZ"
    assert code_name(8191) == "IMGIMGIBJBZ"
    assert size_name(20) == "<reserved08820>"
    assert size_name(3) == "<reserved08803>"


@pytest.mark.parametrize("units", [0, 31, -1])
def test_sizes_without_a_token(units):
    with pytest.raises(ValueError, match="1 to 30 exist"):
        size_name(units)


def test_ids_are_looked_up_by_name():
    ids = shuffled(40)
    found = Vocabulary.from_names(ids)
    assert found.sep == ids["<sentinel:0>"]
    assert found.end_of_turn == ids["<reserved08706>"]
    for code in (0, 9, 10, 39):
        assert found.code_ids[code] == ids[code_name(code)]
    for units in (1, 30):
        assert found.size_ids[units] == ids[size_name(units)]
    assert found.size_ids[0] == -1
    assert found.size == max(ids.values()) + 1


def test_codes_of_ids_inverts_code_ids():
    found = Vocabulary.from_names(shuffled(40))
    np.testing.assert_array_equal(found.codes_of_ids[found.code_ids], np.arange(40))
    assert (found.codes_of_ids >= 0).sum() == 40


@pytest.mark.parametrize("name", [vocabulary.SEP, vocabulary.BOS, size_name(7), code_name(5)])
def test_a_missing_name_is_reported(name):
    ids = shuffled(12)
    del ids[name]
    with pytest.raises(ValueError, match=f"mine.json lacks control tokens: {name}"):
        Vocabulary.from_names(ids, "mine.json")


def test_many_missing_names_are_counted():
    with pytest.raises(ValueError, match="and 31 more"):
        Vocabulary.from_names({"a": 0})
