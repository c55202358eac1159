"""Text <-> ids, and that users' text never becomes a control id."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.tiny_model import CODES, WORDS, tiny_tokenizer
from unitoken_jax.sequence.tokenizer import Tokenizer, train_tokenizer
from unitoken_jax.sequence.vocabulary import control_names


@given(st.text())
def test_round_trip(text):
    text = text.encode("utf-8", "ignore").decode("utf-8")
    assert tiny_tokenizer().decode(tiny_tokenizer().encode(text)) == text


@given(st.lists(st.sampled_from([*control_names(CODES), "red", " ", "é"])).map("".join))
def test_users_text_never_becomes_a_control_id(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    assert min(ids, default=len(control_names(CODES))) >= len(control_names(CODES))
    assert tokenizer.decode(ids) == text


def test_a_control_name_does_not_change_how_its_neighbours_are_read():
    tokenizer = tiny_tokenizer()
    assert len(tokenizer.encode(" red")) == 1
    assert tokenizer.encode("<s> red")[-1:] == tokenizer.encode(" red")


def test_not_even_where_the_vocabulary_spells_a_control_name():
    """With `ignore_merges`, a word that is in the vocabulary becomes its id, control name or not."""
    tokenizer = tiny_tokenizer()
    state = tokenizer.__getstate__()
    spelling = json.loads(state["json"])
    spelling["model"]["ignore_merges"] = True
    tokenizer = pickle.loads(pickle.dumps(tokenizer))
    tokenizer.__setstate__(state | {"json": json.dumps(spelling)})
    ids = tokenizer.encode("IMGIMGFZ")
    assert len(ids) == len("IMGIMGFZ")
    assert tokenizer.decode(ids) == "IMGIMGFZ"


def test_control_names_are_found():
    tokenizer = tiny_tokenizer()
    for name in control_names(CODES):
        assert tokenizer.control_name_in(f"a{name}b") == name
    for text in ("a < b > c", "<div>", "IMGIMG", "<reserved0>", f"IMGIMG{'J' * 9}Z", ""):
        assert tokenizer.control_name_in(text) is None


def test_decode_drops_control_ids_and_strangers():
    tokenizer = tiny_tokenizer()
    vocabulary = tokenizer.vocabulary
    ids = [vocabulary.bos, *tokenizer.encode("red"), int(vocabulary.code_ids[3]), vocabulary.end_of_turn]
    assert tokenizer.decode([*ids, vocabulary.size + 5, -1]) == "red"


def test_control_tokens_have_the_first_ids_and_words_one_each():
    tokenizer = train_tokenizer(["the red circle"] * 9, codes=3, vocab_size=320)
    assert tokenizer.vocabulary.bos == 0
    assert list(tokenizer.vocabulary.code_ids) == [3, 4, 5]
    assert len(tokenizer.encode("the red circle")) == 3


def test_a_phrase_is_one_token_wherever_it_stands():
    phrase = "Draw this:\n"
    tokenizer = train_tokenizer(["the red circle"] * 9, codes=3, vocab_size=320, phrases=[phrase])
    (token,) = tokenizer.encode(phrase)
    assert token < 320
    assert tokenizer.encode(phrase + "the red circle") == [token, *tokenizer.encode("the red circle")]
    assert tokenizer.decode(tokenizer.encode(phrase + "red")) == phrase + "red"


def test_training_is_deterministic():
    assert pickle.dumps(train_tokenizer([WORDS] * 4, CODES, 400)) == pickle.dumps(tiny_tokenizer())


def test_save_load_and_pickle(tmp_path):
    tiny_tokenizer().save(tmp_path / "tokenizer.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json"]
    text = "red <s> IMGIMGAZ"
    for again in (Tokenizer.load(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(tiny_tokenizer()))):
        assert again.encode(text) == tiny_tokenizer().encode(text)
        assert again.vocabulary.end_of_turn == tiny_tokenizer().vocabulary.end_of_turn


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        Tokenizer.load(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not a tokenizer"):
        Tokenizer.load(tmp_path / "broken.json")


def test_a_plain_text_tokenizer_is_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "plain.json"))
    with pytest.raises(ValueError, match=r"plain\.json lacks control tokens: <s>, <pad>"):
        Tokenizer.load(tmp_path / "plain.json")


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size 10 is too small"):
        train_tokenizer(["a"], codes=4, vocab_size=10)
