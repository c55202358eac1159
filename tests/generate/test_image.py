"""Drawing images: grammar, guidance, one sample anywhere the same, and pixels."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import compiles
from tests.helpers.decoding import full_logits
from tests.helpers.tiny_model import CONFIG, noise, tiny_model
from unitoken_jax.generate.grammar import image_grammar
from unitoken_jax.generate.sampling import position_keys, sample, stream_keys
from unitoken_jax.generate.vq import decode_codes, encode_images
from unitoken_jax.sequence.build import build_text_to_image_prompt
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES
from unitoken_jax.unitoken import UniToken

PROMPTS = ["a red circle", "two blue squares left of a green circle and a square", "a"]


def _tokens(drawings):
    return np.stack([drawing.tokens for drawing in drawings])


@pytest.mark.slow
def test_tokens_obey_the_grammar():
    model = tiny_model()
    drawings = model.image_results(PROMPTS, number=2)
    assert [(d.prompt, d.number) for d in drawings] == [(p, i) for p in PROMPTS for i in range(2)]
    vocabulary = model.tokenizer.vocabulary
    forced = image_grammar(CONFIG, vocabulary, 16, 16).forced
    for drawing in drawings:
        assert drawing.tokens[0] == vocabulary.begin_of_image
        body = drawing.tokens[1:]
        np.testing.assert_array_equal(body[forced != MODEL_CHOOSES], forced[forced != MODEL_CHOOSES])
        assert np.isin(body[forced == MODEL_CHOOSES], vocabulary.code_ids).all()
        assert drawing.image.size == (16, 16)
        assert drawing.timing.passes == 15


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "top_k"), [(1.0, 1), (3.0, 1), (3.0, 8)])
def test_guided_image_equals_full_forward_passes(guidance, top_k):
    """The published rule written out: two streams, each read whole again for every token."""
    model = tiny_model()
    vocabulary = model.tokenizer.vocabulary
    forced = image_grammar(CONFIG, vocabulary, 16, 16).forced
    conditional = build_text_to_image_prompt(PROMPTS[0], model.tokenizer, CONFIG).tokens.tolist()
    unconditional = [vocabulary.begin_of_image]
    prompt = np.array([*conditional, *forced[:2]], np.int32)
    key = stream_keys(np.zeros(1, np.uint32), np.array([[zlib.crc32(prompt.tobytes()), 0]], np.uint32))

    def logits(tokens):
        row = np.zeros((1, 96), np.int32)
        row[0, : len(tokens)] = tokens
        return np.asarray(full_logits(model.params, row, len(tokens)))[vocabulary.code_ids]

    @jax.jit
    def chosen(guided, step):
        return sample(guided[None], position_keys(key, step[None, None])[0], top_k, 1.0)[0]

    for step, one in enumerate(forced, start=-2):  # keys count from the first code, new-lines included
        if one == MODEL_CHOOSES:
            free = logits(unconditional)
            one = vocabulary.code_ids[chosen(free + guidance * (logits(conditional) - free), step)]
        conditional.append(int(one))
        unconditional.append(int(one))
    (drawing,) = model.image_results([PROMPTS[0]], guidance=guidance, top_k=top_k)
    np.testing.assert_array_equal(drawing.tokens, unconditional)


class Counted:
    """A module that notes how many tokens a row each run of its decoder reads."""

    def __init__(self, module):
        self.module, self.config, self.dtype, self.seen = module, module.config, module.dtype, []

    def apply(self, variables, tokens, *rest, **settings):
        jax.debug.callback(lambda: self.seen.append(tokens.shape[1]))
        return self.module.apply(variables, tokens, *rest, **settings)

    def init_cache(self, rows, length):
        return self.module.init_cache(rows, length)


def test_forced_ids_take_no_pass_of_their_own(monkeypatch):
    model = tiny_model()
    counted = Counted(model.module)
    monkeypatch.setattr(model, "module", counted)
    (drawing,) = model.image_results(["a"], size=(8, 24), speculate=0)
    jax.effects_barrier()
    assert len(drawing.tokens) == 1 + 2 + 2 * 7 + 1
    # The prompt gives the first code, each pass another one: where a row ends, it reads the new-line too.
    assert sorted(counted.seen) == [1] * 10 + [2, 64]
    assert drawing.timing.passes == 11


def test_a_sample_is_the_same_anywhere():
    model = tiny_model()
    together = {(d.prompt, d.number): d.tokens for d in model.image_results(PROMPTS, number=2, seed=5)}
    assert len({tuple(tokens) for tokens in together.values()}) == 6
    for prompts, batch in (([PROMPTS[1]], 16), (PROMPTS[::-1], 2), ([PROMPTS[2]] * 2, 1)):
        for drawing in model.image_results(prompts, seed=5, batch=batch):
            np.testing.assert_array_equal(drawing.tokens, together[drawing.prompt, drawing.number])


def test_progress_shows_the_rows_so_far():
    seen = []
    drawings = tiny_model().image_results(
        PROMPTS[:2], progress=lambda number, image: seen.append((number, image))
    )
    for number, drawing in enumerate(drawings):
        own = [image for one, image in seen if one == number]
        heights = [image.height for image in own]
        assert {image.width for image in own} == {16}
        assert heights == sorted(set(heights))
        np.testing.assert_array_equal(np.asarray(own[-1]), np.asarray(drawing.image))


def test_seed_and_settings_matter():
    model = tiny_model()
    drawn = [
        _tokens(model.image_results(PROMPTS[:2], **settings))
        for settings in ({}, {"seed": 1}, {"guidance": 8.0}, {"top_k": 2}, {"temperature": 0.2})
    ]
    assert len({tokens.tobytes() for tokens in drawn}) == 5
    np.testing.assert_array_equal(_tokens(model.image_results(PROMPTS[:2])), drawn[0])


def test_temperature_zero_is_greedy():
    model = tiny_model()
    greedy = _tokens(model.image_results(PROMPTS[:2], temperature=0.0, seed=3))
    np.testing.assert_array_equal(greedy, _tokens(model.image_results(PROMPTS[:2], top_k=1)))


def test_nothing_recompiles_for_another_prompt_seed_or_setting():
    model = tiny_model()
    model.image_results(["a blue circle", "a"], seed=0)
    with compiles.counted() as found:
        model.image_results(["two green squares", "what"], seed=7, guidance=2.0, top_k=3, temperature=0.7)
    assert not found


def test_another_size():
    (drawing,) = tiny_model().image_results(["a red circle"], size=(8, 24))
    assert drawing.image.size == (24, 8)
    vocabulary = tiny_model().tokenizer.vocabulary
    assert drawing.tokens[1:3].tolist() == vocabulary.size_ids[[1, 3]].tolist()


def test_pixels_are_clipped_mapped_and_truncated(monkeypatch):
    model = tiny_model()
    values = np.linspace(-1.5, 1.5, 2 * 16 * 16 * 3, dtype=np.float32).reshape(2, 16, 16, 3)

    class Stub:
        def apply(self, variables, codes, method):
            assert method == "decode"
            return jnp.asarray(values)

    monkeypatch.setattr(model, "vq", Stub())
    images = decode_codes(model, np.zeros((2, 4, 4), np.int32))
    expected = ((values.clip(-1, 1) + 1) / 2 * 255).astype(np.uint8)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images]), expected)


def test_encoding_does_not_depend_on_the_batch():
    crops = np.stack([np.asarray(noise(seed, 16, 16)) for seed in range(5)])
    codes = encode_images(tiny_model(), crops, batch=4)
    assert codes.shape == (5, 4, 4)
    np.testing.assert_array_equal(codes[3:4], encode_images(tiny_model(), crops[3:4]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (16, 20)}, r"width 20 px is not supported\. Allowed sides .*: 8, 16, 24"),
        ({"guidance": 0.0}, "guidance is 0.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 17}, "top_k is 17; there are only 16"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"number": 0}, "number is 0"),
        ({"speculate": -1}, "speculate is -1"),
        ({"speculate": 2.5}, "speculate is 2.5"),
        ({"prompts": "a red circle"}, "expected a list"),
        ({"prompts": ["<s>"]}, "control token"),
        ({"prompts": [""]}, "empty"),
    ],
)
def test_bad_requests(settings, message):
    settings = {"prompts": ["a"]} | settings
    with pytest.raises(ValueError, match=message):
        tiny_model().image_results(settings.pop("prompts"), **settings)


def test_a_model_without_a_vq_decoder_refuses_to_draw():
    model = tiny_model()
    rest = {name: tree for name, tree in model.params["vqgan"].items() if name != "decoder"}
    model = UniToken(model.config, model.params | {"vqgan": rest}, model.tokenizer)
    with pytest.raises(ValueError, match="no vqgan/decoder parameters, which drawing images needs"):
        model.image_results(["a"])
