"""The on-device loops against a full forward pass, alone against in a batch, and what compiles."""

import jax
import numpy as np
import pytest

from tests.helpers import compiles
from tests.helpers.decoding import full_logits, random_prompts
from tests.helpers.networks import quantize_params
from tests.helpers.tiny_model import CONFIG, tiny_model, tiny_params
from unitoken_jax.generate import decode
from unitoken_jax.generate.sampling import sample_keys
from unitoken_jax.model.decoder import unstack_layers
from unitoken_jax.model.unitoken import UniTokenModel
from unitoken_jax.planning.hlo import parse
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES


def _write(prompts, rows=None, end=-7, limit=10, room=16, greedy=True, seed=0, numbers=None, top_k=5):
    """What follows each prompt, a list of ids a row."""
    model = tiny_model()
    rows = rows or len(prompts)
    sampling = decode.SamplingParams(
        top_k=np.int32(top_k),
        temperature=np.float32(0.8),
        guidance=np.float32(1),
        forced=np.full(room, MODEL_CHOOSES, np.int32),
        ids=None,
        ends=np.array([end], np.int32),
    )
    keys = sample_keys(seed, np.resize(np.arange(len(prompts)) if numbers is None else numbers, rows))
    limits = np.array([limit] * len(prompts) + [0] * (rows - len(prompts)), np.int32)
    stacked, spec = decode.pad_prompts(prompts, rows), decode.DecodeSpec(greedy=greedy)
    arguments = model.module, model.network_params, stacked, keys, limits, sampling
    state = decode.prefill(*arguments, slots=stacked.tokens.shape[1] + room, spec=spec)
    arguments = model.module, model.network_params, state, sampling, np.int32(1), np.int32(room)
    state, _ = decode.decode_loop(*arguments, spec=spec)
    return [row[:count].tolist() for row, count in zip(np.asarray(state.tokens), np.asarray(state.counts))]


@pytest.mark.parametrize(
    ("number", "expected"), [(1, 64), (64, 64), (65, 96), (97, 128), (128, 128), (129, 192), (4760, 6144)]
)
def test_length_buckets(number, expected):
    assert decode.bucket_size(number) == expected


def test_crop_buckets_waste_little():
    found = {decode.bucket_size(n, minimum=1, steps_per_octave=4) for n in range(1, 17)}
    assert found == {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16}


def test_row_buckets():
    assert [decode.batch_rows(n) for n in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]
    assert [decode.batch_rows(n, multiple=6) for n in (1, 7)] == [6, 12]


def test_greedy_is_the_full_forward_passs_argmax():
    (prompt,) = random_prompts([11])
    row = np.zeros((1, 64), np.int32)
    row[0, :11] = prompt.tokens
    for n in range(11, 21):
        row[0, n] = np.argmax(full_logits(tiny_model().params, row, n))
    assert _write([prompt])[0] == row[0, 11:21].tolist()


@pytest.mark.parametrize("greedy", [True, False])
def test_ragged_batch_equals_each_row_alone(greedy):
    prompts = random_prompts([3, 17, 60, 9, 41])
    together = _write(prompts, rows=8, greedy=greedy)
    for number, prompt in enumerate(prompts):
        assert _write([prompt], greedy=greedy, numbers=[number]) == [together[number]]
    assert len({tuple(row) for row in together[:5]}) == 5
    assert together[5:] == [[]] * 3


def test_longer_padding_changes_nothing():
    short, long = random_prompts([20, 100])
    assert _write([short])[0] == _write([short, long])[0]


def test_rows_stop_at_their_own_end_and_at_the_limit():
    prompts = random_prompts([3, 17, 60])
    free = _write(prompts)
    assert [len(row) for row in free] == [10, 10, 10]
    for place in (0, 4):  # the first token is chosen apart from the others
        end = free[1][place]
        cut = [row[: row.index(end) + 1] if end in row else row for row in free]
        assert _write(prompts, end=end) == cut


def test_sampled_tokens_follow_seed_and_number():
    (prompt,) = random_prompts([8])
    rows = _write([prompt] * 3, rows=4, greedy=False, numbers=[0, 1, 0])
    assert rows[0] == rows[2] != rows[1]
    assert rows[0] != _write([prompt], greedy=False, seed=1, numbers=[0])[0]


def test_nothing_recompiles_within_a_bucket():
    _write(random_prompts([30, 3]), greedy=False)
    with compiles.counted() as found:
        _write(random_prompts([5, 64], seed=1), greedy=False, seed=9, top_k=3, limit=12, end=80)
    assert not found
    with compiles.counted() as found:
        _write(random_prompts([5, 65], seed=1), greedy=False)
    assert found


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("window", [1, 3])
def test_a_pass_copies_neither_cache_nor_weights(quantize, window):
    """Guided drawing under forced ids: the loop moves nothing of the size of keys or kernels."""
    module = UniTokenModel(CONFIG, cache_dtype=quantize and np.dtype(quantize))
    params = {"decoder": tiny_params()["decoder"]}
    params = quantize_params(params, quantize) if quantize else params
    params = {"decoder": unstack_layers(params["decoder"])}
    forced = np.array([MODEL_CHOOSES, MODEL_CHOOSES, 7] * 5, np.int32)
    ids, ends, one = np.arange(20, dtype=np.int32), np.zeros(0, np.int32), np.int32(1)
    sampling = decode.SamplingParams(one, np.float32(1), np.float32(3), forced, ids, ends, np.int32(3))
    spec = decode.DecodeSpec(window, guided=True)
    arguments = (
        module,
        params,
        decode.pad_prompts(random_prompts([9, 3]), 2),
        sample_keys(0, [0]),
        np.array([14], np.int32),
    )
    state = decode.prefill(*arguments, sampling, slots=79, spec=spec)
    text = decode.decode_loop.lower(module, params, state, sampling, one, one, spec=spec).compile().as_text()
    large = [leaf for leaf in jax.tree.leaves((state.cache, params["decoder"]["layers"])) if leaf.ndim > 1]
    sizes = {_dimensions(leaf.shape) for leaf in large}
    program = parse(text)
    moved = [
        f"{each.op} {each.shapes[0]}"
        for name, computation in program.computations.items()
        for each in computation.values()
        if name != program.entry and each.op in ("copy", "transpose")
        if _dimensions(each.shapes[0].sizes) in sizes
    ]
    assert not moved


def _dimensions(sizes) -> tuple[int, ...]:
    return tuple(sorted(size for size in sizes if size != 1))


def test_code_columns_equal_the_whole_heads():
    """`draw` multiplies with the code columns alone; the model's own logits must agree."""
    model = tiny_model()
    hidden = jax.random.normal(jax.random.key(0), (3, CONFIG.decoder.width))
    ids = model.tokenizer.vocabulary.code_ids
    logits = model.module.apply({"params": model.network_params}, hidden[:, None], method="logits")[:, 0]
    head = model.params["decoder"]["lm_head"]["kernel"][:, ids]
    codes = decode.code_logits(hidden, head, model.module.dtype)
    np.testing.assert_allclose(codes, logits[:, ids], rtol=1e-6, atol=1e-6)
