"""One conversation -> one sequence: layout, labels, lengths and prompts in every variant."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.host_data import with_sequence
from tests.helpers.tiny_model import CODES, CONFIG, noise
from unitoken_jax.config import DecoderConfig, ModelConfig, VQConfig, published_sequence
from unitoken_jax.sequence import anyres, build
from unitoken_jax.sequence.conversation import ImageFile, make_conversation
from unitoken_jax.sequence.errors import ConversationError
from unitoken_jax.sequence.image import ImageError, discrete_crop, siglip_crops
from unitoken_jax.sequence.layout import image_template, validate_config
from unitoken_jax.sequence.tokenizer import train_tokenizer
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES, Vocabulary, code_name, control_names

# One token a word, also at the start of a text.
TOKENIZER = train_tokenizer(["what", "red", "blue", "green", "two"] * 4, CODES, 400)
V = TOKENIZER.vocabulary
SIDE, HALF = noise(0, 24, 16), noise(1, 16, 16)
ENCODINGS = ("unified", "discrete", "continuous")
PATCHES = CONFIG.siglip.patches


def spelled(example) -> str:
    """Roles: B bos, [ begin, # size, d code, / new-line, S sep, c feature, ] end, t text, . end of turn."""
    roles = {
        V.bos: "B",
        V.begin_of_image: "[",
        V.end_of_image: "]",
        V.sep: "S",
        V.new_line: "/",
        V.end_of_turn: ".",
    }
    roles |= {int(i): "d" for i in V.code_ids} | dict.fromkeys(V.size_ids[1:].tolist(), "#")
    letters = [roles.get(int(token), "t") for token in example.tokens]
    return "".join("c" if soft >= 0 else letter for letter, soft in zip(letters, example.image_feature_index))


def learnt(example) -> str:
    """`spelled` with a blank where there is no label; checks that labels are the tokens themselves."""
    where = example.labels >= 0
    np.testing.assert_array_equal(example.labels[where], example.tokens[where])
    return "".join(letter if on else " " for letter, on in zip(spelled(example), where))


D = "[##dddd/dddd/dddd/dddd/"  # 16 px, stride 4
C = "cccc" + "cccc/" * 4  # a square image: the whole, then 2x2 tiles of 2x2 patches


@pytest.mark.parametrize(
    ("encoding", "resolution", "expected"),
    [
        ("unified", "anyres", "Bt" + D + "S" + C + "]t.t."),
        ("unified", "base", "Bt" + D + "Scccc]t.t."),
        ("discrete", "anyres", "Bt" + D + "]t.t."),
        ("continuous", "anyres", "Bt[" + C + "]t.t."),
        ("continuous", "base", "Bt[cccc]t.t."),
    ],
)
def test_image_in_a_question(encoding, resolution, expected):
    config = with_sequence(encoding=encoding, resolution=resolution)
    square = noise(0, 32, 32)
    example = build.build_example(make_conversation([["what", square, "red"], ["blue"]]), TOKENIZER, config)
    assert spelled(example) == expected
    assert learnt(example) == " " * (len(expected) - 2) + "t."


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_image_in_an_answer_is_discrete(encoding):
    example = build.build_example(
        make_conversation([["red"], [SIDE]]), TOKENIZER, with_sequence(encoding=encoding)
    )
    assert spelled(example) == "Bt." + D + "]."
    assert learnt(example) == "   " + D + "]."


def test_the_example_that_layout_draws():
    conversation = make_conversation([[noise(0, width=32, height=16)], ["red"]])
    config = with_sequence(image_size=(8, 16))
    example = build.build_example(conversation, TOKENIZER, config)
    end = 29
    assert spelled(example)[1 : end + 1] == "[##dddd/dddd/S" + "cccc" + "cccc/" * 2 + "]"
    np.testing.assert_array_equal(example.tokens[2:4], V.size_ids[[1, 2]])
    codes = [-1, -1, -1, 0, 1, 2, 3, -1, 4, 5, 6, 7, -1]
    features = [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1, -1]
    np.testing.assert_array_equal(example.code_index[1:], codes + [-1] * (len(example.tokens) - 14))
    np.testing.assert_array_equal(example.image_feature_index[15 : end + 1], features)
    two = build.build_example(
        make_conversation([[noise(0, 32, 16), noise(1, 32, 16)], ["red"]]), TOKENIZER, config
    )
    assert two.code_index.max() == 15
    assert two.image_feature_index.max() == 23


def test_released_variant():
    config = dataclasses.replace(CONFIG, sequence=published_sequence(image_size=(16, 16), size_unit=8))
    square = noise(0, 32, 32)
    example = build.build_example(make_conversation([[square, "red"], ["blue", square]]), TOKENIZER, config)
    one = D + "S" + C + "]"
    assert spelled(example) == "B" + one + "t.t" + one + "."
    blank = " " * len(C)
    assert learnt(example) == " " * 24 + "S" + blank + "   t" + D + "S" + blank + "]."
    assert "S" not in learnt(build.build_example(make_conversation([[square], ["blue"]]), TOKENIZER, CONFIG))


def test_labels_of_codes_alone():
    config = with_sequence(image_labels="codes")
    example = build.build_example(make_conversation([["red"], ["blue", SIDE]]), TOKENIZER, config)
    assert learnt(example) == "   t" + D.translate({ord(c): " " for c in "[#/"}) + " ."


def test_text_only():
    example = build.build_example(
        make_conversation([["red"], ["blue"], ["green"], ["two"]]), TOKENIZER, CONFIG
    )
    assert spelled(example) == "Bt.t.t.t."
    assert learnt(example) == "   t.  t."
    assert example.lengths == (9, 0, 0, 0)


def test_template_and_size_ids():
    config = with_sequence(image_size=(8, 24))
    height, width = V.size_ids[1], V.size_ids[3]
    template = image_template(config, V)
    assert template[:3].tolist() == [V.begin_of_image, height, width]
    assert template[3:-1].tolist() == ([MODEL_CHOOSES] * 6 + [V.new_line]) * 2
    assert template[-1] == V.end_of_image


image_parts = st.tuples(st.integers(4, 60), st.integers(4, 60)).map(lambda size: Image.new("RGB", size))
turn_parts = st.lists(st.sampled_from(["red", " blue", "\n"]) | image_parts, min_size=1, max_size=3)
dialogues = st.lists(turn_parts, min_size=2, max_size=4).filter(
    lambda turns: (
        len(turns) % 2 == 0 and all(any(p != "\n" or not isinstance(p, str) for p in turn) for turn in turns)
    )
)
variants = st.builds(
    with_sequence,
    encoding=st.sampled_from(ENCODINGS),
    resolution=st.sampled_from(["anyres", "base"]),
    features_in_answers=st.booleans(),
    supervise_sep=st.booleans(),
    image_labels=st.sampled_from(["all", "codes"]),
)


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(dialogues, variants, st.booleans())
def test_length_is_known_beforehand(turns, config, online):
    conversation = make_conversation(turns)
    codes = None if online else lambda crop: np.zeros((4, 4), np.int32)
    example = build.build_example(conversation, TOKENIZER, config, codes)
    sizes = [(image.height, image.width) for image in conversation.images]
    for known in (sizes, None):
        found = build.example_size(conversation, TOKENIZER, config, known, online=online)
        assert found == example.lengths
    # Each feature slot and each code slot once, in range, fields of one length.
    soft = example.image_feature_index[example.image_feature_index >= 0]
    assert len(np.unique(soft)) == len(soft)
    assert soft.max(initial=-1) < len(example.crops) * PATCHES
    code = example.code_index[example.code_index >= 0]
    np.testing.assert_array_equal(code, np.arange(16 * len(example.images)))
    assert {
        len(a) for a in (example.tokens, example.labels, example.image_feature_index, example.code_index)
    } == {example.lengths.tokens}
    assert all(a.dtype == np.int32 for a in (example.tokens, example.labels, example.image_feature_index))
    learnt(example)


def test_several_images_index_their_own_features_and_codes():
    config = with_sequence(resolution="anyres")
    conversation = make_conversation([[SIDE, "red", HALF], ["two"], [SIDE], [HALF]])
    example = build.build_example(conversation, TOKENIZER, config)
    shown = [SIDE, HALF, SIDE]
    counts = [anyres.crop_count(p.height, p.width, config.siglip, config.sequence) for p in shown]
    starts = [0, *itertools.accumulate(counts)]
    crops = np.concatenate([siglip_crops(p, config.siglip, config.sequence) for p in shown])
    np.testing.assert_array_equal(example.crops, crops)
    soft = example.image_feature_index[example.image_feature_index >= 0]
    layouts = [anyres.feature_layout(p.height, p.width, config.siglip, config.sequence) for p in shown]
    expected = [layout[layout >= 0] + start * PATCHES for layout, start in zip(layouts, starts)]
    np.testing.assert_array_equal(soft, np.concatenate(expected))
    images = np.stack([discrete_crop(p, (16, 16)) for p in (*shown, HALF)])
    np.testing.assert_array_equal(example.images, images)


def test_codes_made_beforehand_take_their_places(tmp_path):
    SIDE.save(tmp_path / "a.png")
    codes = np.arange(16, dtype=np.int32).reshape(4, 4)[::-1] % CODES
    conversation = make_conversation([["red"], [tmp_path / "a.png"]])
    by_name = build.build_example(conversation, TOKENIZER, CONFIG, {str(tmp_path / "a.png"): codes})
    by_crop = build.build_example(make_conversation([["red"], [SIDE]]), TOKENIZER, CONFIG, lambda crop: codes)
    for example in (by_name, by_crop):
        found = V.codes_of_ids[example.tokens]
        np.testing.assert_array_equal(found[found >= 0], codes.reshape(-1))
        assert example.lengths.images == 0
        assert (example.code_index == -1).all()
        learnt(example)


def test_offline_discrete_images_need_no_file():
    conversation = make_conversation([["red"], ["x"]])
    turn = dataclasses.replace(conversation.turns[1], parts=(ImageFile("gone.png", "nowhere/gone.png"),))
    conversation = dataclasses.replace(conversation, turns=(conversation.turns[0], turn))
    codes = {"gone.png": np.zeros((4, 4), np.int32)}
    assert spelled(build.build_example(conversation, TOKENIZER, CONFIG, codes)) == "Bt." + D + "]."


@pytest.mark.parametrize("codes", [np.zeros((4, 5), np.int32), np.full((4, 4), CODES), np.full((4, 4), -1)])
def test_codes_of_another_model_are_refused(codes):
    with pytest.raises(ImageError, match="made by another model"):
        build.build_example(make_conversation([["red"], [SIDE]]), TOKENIZER, CONFIG, lambda crop: codes)


def test_missing_codes_are_named(tmp_path):
    SIDE.save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"no VQ codes for .*a\.png: run `unitoken tokenize`"):
        build.build_example(make_conversation([["red"], [tmp_path / "a.png"]]), TOKENIZER, CONFIG, {})
    with pytest.raises(ImageError, match="not a file"):
        build.build_example(make_conversation([["red"], [SIDE]]), TOKENIZER, CONFIG, {})


def test_random_crops_follow_the_generator():
    wide = noise(3, 90, 16)
    config = with_sequence(crop="random", encoding="discrete")
    conversation = make_conversation([[wide], ["red"]])

    def crop(seed):
        rng = None if seed is None else np.random.default_rng(seed)
        return build.build_example(conversation, TOKENIZER, config, rng=rng).images[0]

    np.testing.assert_array_equal(crop(1), crop(1))
    assert (crop(1) != crop(2)).any()
    np.testing.assert_array_equal(crop(None), discrete_crop(wide, (16, 16)))
    centre = with_sequence(encoding="discrete")
    fixed = build.build_example(conversation, TOKENIZER, centre, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(fixed.images[0], crop(None))


@pytest.mark.parametrize("soft", [False, True])
def test_a_dropped_prompt_leaves_what_guidance_sees(soft):
    config = with_sequence(features_in_answers=soft)
    conversation = make_conversation([["a red circle"], [SIDE]])
    whole = build.build_example(conversation, TOKENIZER, config)
    dropped = build.build_example(conversation, TOKENIZER, config, drop_prompt=True)
    start = list(whole.tokens).index(V.begin_of_image)
    np.testing.assert_array_equal(dropped.tokens, whole.tokens[start:])
    np.testing.assert_array_equal(dropped.labels, whole.labels[start:])
    np.testing.assert_array_equal(dropped.image_feature_index, whole.image_feature_index[start:])
    assert dropped.tokens[0] == build.unconditional_prompt_ids(V)[0]
    assert build.example_size(conversation, TOKENIZER, config, drop_prompt=True) == dropped.lengths


@pytest.mark.parametrize(
    "turns", [[["red"], ["blue"]], [[SIDE], [SIDE]], [["red"], [SIDE, "x"]], [["red"], [SIDE], ["a"], [SIDE]]]
)
def test_only_text_to_image_prompts_can_be_dropped(turns):
    assert not build.is_text_to_image(make_conversation(turns))
    with pytest.raises(ValueError, match="only a text-to-image prompt"):
        build.build_example(make_conversation(turns), TOKENIZER, CONFIG, drop_prompt=True)


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(dialogues, variants)
def test_a_prompt_is_the_beginning_of_its_training_sequence(turns, config):
    whole = build.build_example(make_conversation(turns), TOKENIZER, config)
    start = build.build_prompt(make_conversation(turns[:-1]), TOKENIZER, config)
    n = len(start.tokens)
    for name in ("tokens", "image_feature_index", "code_index"):
        np.testing.assert_array_equal(getattr(start, name), getattr(whole, name)[:n])
    assert start.tokens[-1] == V.end_of_turn
    assert (start.labels == -1).all()
    np.testing.assert_array_equal(start.crops, whole.crops[: len(start.crops)])


def test_a_prompt_ends_with_a_question():
    with pytest.raises(ConversationError, match="must end with a question"):
        build.build_prompt(make_conversation([["red"], ["blue"]]), TOKENIZER, CONFIG)


@pytest.mark.parametrize("lead", ["", " "])
def test_image_prompt_starts_as_its_training_sequence(lead):
    config = with_sequence(text_before_image=lead)
    whole = build.build_example(
        make_conversation([[build.TEXT_TO_IMAGE_INSTRUCTION + "a red circle"], [SIDE]]), TOKENIZER, config
    )
    tokens = build.build_text_to_image_prompt("a red circle", TOKENIZER, config).tokens.tolist()
    expected = whole.tokens[: list(whole.tokens).index(V.begin_of_image)].tolist()
    assert tokens == [*expected, *TOKENIZER.encode(lead), V.begin_of_image]
    edit = build.build_prompt(make_conversation([[SIDE, "red"]]), TOKENIZER, config, image=True)
    assert edit.tokens[-1] == V.begin_of_image
    assert edit.lengths.crops > 0


@pytest.mark.parametrize("name", ["<racm3:break>", "<s>", code_name(3), "<sentinel:0>", "<reserved08706>"])
def test_a_control_token_typed_by_a_user(name):
    for turns in ([[f"what {name} is"], ["red"]], [["what"], [name]]):
        conversation = dataclasses.replace(make_conversation(turns), source="data.jsonl:7")
        for function in (build.build_example, build.example_size):
            with pytest.raises(ConversationError, match=r"data\.jsonl:7: the text contains ") as raised:
                function(conversation, TOKENIZER, CONFIG)
            assert name in str(raised.value)
    with pytest.raises(ConversationError, match="control token"):
        build.build_text_to_image_prompt(name, TOKENIZER, CONFIG)


def test_a_bad_image_is_named_with_its_conversation(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    conversation = dataclasses.replace(
        make_conversation([[tmp_path / "a.png"], ["red"]]), source="data.jsonl:7"
    )
    for function in (build.build_example, build.example_size):
        with pytest.raises(ImageError, match=r"^data\.jsonl:7: .*a\.png is not an image"):
            function(conversation, TOKENIZER, CONFIG)


@pytest.mark.parametrize("size", [(12, 16), (16, 20), (0, 16), (16, 248), (16, -8)])
def test_unsupported_image_sizes_list_the_allowed_ones(size):
    with pytest.raises(ValueError, match=r"not supported\. Allowed sides .*: 8, 16, 24, .*, 240$"):
        validate_config(with_sequence(image_size=size), V)


def test_allowed_sizes_are_multiples_of_unit_and_stride():
    with pytest.raises(ValueError, match=r"\(multiples of size_unit 6 and VQ stride 4\): 12, 24, "):
        validate_config(with_sequence(image_size=(16, 16), size_unit=6), V)
    validate_config(with_sequence(image_size=(12, 24), size_unit=6), V)


def test_tokenizer_and_model_must_agree():
    fewer = dataclasses.replace(CONFIG, vq=dataclasses.replace(CONFIG.vq, codes=CODES + 1))
    with pytest.raises(ValueError, match=rf"{CODES} image codes, the VQ codebook \(vq\.codes\) {CODES + 1}"):
        validate_config(fewer, V)
    smaller = dataclasses.replace(CONFIG, decoder=DecoderConfig(vocab_size=V.size - 1))
    with pytest.raises(ValueError, match=r"decoder\.vocab_size"):
        validate_config(smaller, V)


def test_the_published_size():
    """512 px: 32 rows of 32 codes with new-lines, 4 in front, 1 behind; a five-crop image ~4,760 tokens."""
    names = control_names(8192)
    vocabulary = Vocabulary.from_names({name: i for i, name in enumerate(names)})
    config = ModelConfig(vq=VQConfig())
    assert len(image_template(config, vocabulary)) == 3 + 32 * 33 + 1
    soft = len(anyres.feature_layout(768, 768, config.siglip, config.sequence))
    assert 3 + 32 * 33 + 1 + 1 + soft == 4760
