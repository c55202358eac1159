"""Everything the recorded run of the published PyTorch code computed, from its weights converted here.

The tolerances are float32's on a CPU; greedy choices must be the same ids.
"""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from tests.helpers.reference import REFERENCE, needs_reference
from tests.helpers.torch_names import disassemble
from unitoken_jax.config import Config, DataConfig, OptimizerConfig, ParameterGroup, TrainConfig
from unitoken_jax.convert.from_torch import ConvertOptions, convert
from unitoken_jax.data.packing import batch_of
from unitoken_jax.generate.vq import decode_codes, encode_images
from unitoken_jax.inspection.score import score
from unitoken_jax.model.decoder import stack_layers
from unitoken_jax.sequence import build
from unitoken_jax.sequence.conversation_file import read_conversations
from unitoken_jax.sequence.image import discrete_crop, open_image
from unitoken_jax.train import state as states
from unitoken_jax.train.loss import cross_entropy
from unitoken_jax.train.optimizer import peak_rates, transformation
from unitoken_jax.train.step import make_model, make_train_step
from unitoken_jax.unitoken import UniToken

pytestmark = needs_reference
ROW = 256


@pytest.fixture(scope="module")
def golden():
    with np.load(REFERENCE / "golden.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "model"
    tokenizer = REFERENCE / "chameleon" / "tokenizer"
    options = ConvertOptions(image_size=64, verify=True)
    convert(REFERENCE, REFERENCE / "SigLIP", tokenizer, path, options)
    return UniToken.load(path, dtype="float32")


@pytest.fixture(scope="module")
def examples(model, golden):
    """All seven conversations, with the recorded codes."""
    made = []
    for i, conversation in enumerate(read_conversations(REFERENCE / "conversations.json")):
        codes = model.tokenizer.vocabulary.codes_of_ids[golden[f"tokens_{i}"]]
        codes = codes[codes >= 0].reshape(-1, 4, 4)
        table = {image.name: codes[k] for k, image in enumerate(conversation.images)}
        made.append(build.build_example(conversation, model.tokenizer, model.config, table))
    return made


def batch(examples, model) -> dict:
    rows = [[example] for example in examples]
    data = DataConfig(row_length=ROW, row_crops=max(len(e.crops) for e in examples), codes="offline")
    return batch_of(rows, data, model.config)


@pytest.fixture(scope="module")
def outputs(model, examples):
    """Logits and input embeddings of all rows, and the batch."""
    rows = batch(examples, model)

    @jax.jit
    def run(params, rows):
        features = model.module.apply({"params": params}, rows["crops"], method="features")
        x = model.module.apply(
            {"params": params}, rows["tokens"], rows["image_feature_index"], features, method="embed"
        )
        return model.module.apply({"params": params}, rows), jnp.linalg.norm(x, axis=-1)

    logits, norms = run(model.network_params, rows)
    return np.asarray(logits, np.float64), np.asarray(norms)


def close(found, expected, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_siglip_and_adapter(model, golden):
    @jax.jit
    def run(params, crops):
        features = model.module.apply({"params": params}, crops, method=lambda m, x: m.siglip(x))
        return features, model.module.apply({"params": params}, crops[None], method="features")[0]

    pixels = [golden[f"pixels_{i}"].transpose(0, 2, 3, 1) for i in range(7)]
    features, adapted = run(model.network_params, np.concatenate(pixels))
    starts = np.cumsum([0, *map(len, pixels)])
    adapted = adapted.reshape(*features.shape[:2], -1)
    for i, (start, end) in enumerate(itertools.pairwise(starts)):
        close(features[start:end, :, :8], golden[f"vit_{i}"], 1e-4)
        close(adapted[start:end, :, :8], golden[f"adapter_{i}"], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("i", range(7))
def test_sequence_embeddings_and_logits(i, examples, outputs, golden):
    example, (logits, norms) = examples[i], outputs
    n = len(example.tokens)
    # The published code appends a dummy image to a conversation without one.
    assert n == golden[f"length_{i}"] or (i == 6 and n < golden[f"length_{i}"])
    labels = golden[f"unified_labels_{i}"][:n]
    np.testing.assert_array_equal(example.labels, np.where(labels == -100, -1, labels))
    close(norms[i, :n], golden[f"embeds_norm_{i}"][:n], 1e-4)
    here = logits[i, :n]
    normaliser = np.log(np.exp(here - here.max(-1, keepdims=True)).sum(-1)) + here.max(-1)
    close(normaliser, golden[f"logsumexp_{i}"][:n], 1e-4)
    kept = golden[f"logit_positions_{i}"] < n
    sample = here[np.ix_(golden[f"logit_positions_{i}"][kept], golden[f"logit_columns_{i}"])]
    close(sample, golden[f"logits_{i}"][kept], 1e-4)
    np.testing.assert_array_equal(here.argmax(-1), golden[f"argmax_{i}"][:n])


@pytest.mark.slow
def test_score(model, golden):
    """`unitoken score` from the files alone: codes made by the converted VQ encoder."""
    for line in score(model, REFERENCE / "conversations.json"):
        i = line["index"]
        np.testing.assert_allclose(line["loss"], golden[f"loss_{i}"], rtol=1e-5)
        np.testing.assert_allclose(line["z_loss"], golden[f"z_loss_{i}"], rtol=1e-5)
    assert i == 6


def bytes_agree(found, expected) -> None:
    difference = np.abs(np.asarray(found, np.int32) - expected)
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999


@pytest.mark.slow
def test_vqgan(model, golden):
    inputs = {name: golden[f"crop_{name}"] for name in "013"} | {"wide": golden["vq_input_wide"]}
    rgba = open_image(REFERENCE / "images" / "rgba.png")
    for name, image in (inputs | {"rgba": discrete_crop(rgba, (64, 64))}).items():
        codes = encode_images(model, image[None], 1)[0]
        np.testing.assert_array_equal(codes, golden[f"vq_codes_{name}"])
        if name in inputs:
            bytes_agree(decode_codes(model, codes[None])[0], golden[f"vq_reconstruction_{name}"])


@pytest.fixture(scope="module")
def still(model):
    """The model's config with dropout off, as recorded."""
    return dataclasses.replace(model.config, decoder=dataclasses.replace(model.config.decoder, dropout=0.0))


NEVER = ParameterGroup("^siglip/(patch_embed|position_embed)", 0.0)
STAGES = {
    1: (NEVER, ParameterGroup("^siglip/", 1e-5), ParameterGroup("^adapter/", 1e-3)),
    2: (NEVER, ParameterGroup("", 1e-3)),
}


@pytest.mark.slow
def test_every_gradient_norm_at_step_0(model, examples, golden):
    rows = batch(examples[:6], model)
    flat = states.flatten(_stacked(model.network_params))
    trained = {path: jnp.asarray(flat[path]) for path in peak_rates(flat, STAGES[2])}
    frozen = {path: value for path, value in flat.items() if path not in trained}

    @jax.jit
    def gradient(trained):
        def loss(trained):
            params = states.merge(trained, frozen)
            hidden = model.module.apply({"params": params}, rows, method="hidden")
            head = params["decoder"]["lm_head"]["kernel"]
            return cross_entropy(hidden, head, rows["labels"], rows["segments"], 1e-5, 1024)[0]

        return jax.grad(loss)(trained)

    norms = {}
    for path, value in gradient(trained).items():
        for name, part in disassemble(path, np.asarray(value), {"siglip": "vit."}):
            norms[name] = np.linalg.norm(part.astype(np.float64))
    for stage in (1, 2):
        recorded = json.loads((REFERENCE / f"stage{stage}_grad_norms.json").read_text())
        assert recorded.keys() <= norms.keys()
        if stage == 2:
            assert recorded.keys() == norms.keys()
        # A key's bias shifts every logit of a query alike: its true gradient is 0, and both are noise.
        names = [name for name in recorded if recorded[name] > 1e-6]
        assert len(names) >= len(recorded) - 3
        found, expected = ([table[name] for name in names] for table in (norms, recorded))
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        assert all(norms[name] < 1e-5 for name in recorded.keys() - set(names))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_ten_steps(stage, model, still, examples, golden):
    """Slow, since the recorded run trains at sizes that the published code can load."""
    optimizer = OptimizerConfig(groups=STAGES[stage], warmup_fraction=0.2)
    train = TrainConfig(steps=10, dtype="float32", remat="none")
    config = Config(model=still, optimizer=optimizer, train=train)
    params = _stacked(model.network_params)
    rates = peak_rates(flatten_dict(params, sep="/"), optimizer.groups)
    state = states.create(params, rates, transformation(optimizer))
    step = make_train_step(make_model(config, rates), config, rates, model.tokenizer.vocabulary)
    rows = batch(examples[:6], model)
    losses, norms = [], []
    for _ in range(10):
        state, metrics = step(state, rows)
        losses.append(float(metrics["loss"] + optimizer.z_loss * metrics["z_loss"]))  # what was recorded
        norms.append(float(metrics["grad_norm"]))
    np.testing.assert_allclose(losses, golden[f"stage{stage}_loss"], rtol=1e-5)
    np.testing.assert_allclose(norms, golden[f"stage{stage}_grad_norm"], rtol=1e-3)


@pytest.fixture(scope="module")
def conversations():
    return json.loads((REFERENCE / "conversations.json").read_text(encoding="utf-8"))


def test_greedy_answers(model, golden, conversations):
    questions = []
    for i in (0, 1, 3, 6):
        text, images = conversations[i]["conversations"][0]["value"], iter(conversations[i].get("image", []))
        parts = []
        for k, piece in enumerate(text.split("<|image|>")):
            parts += [REFERENCE / next(images)] if k else []
            parts += [piece] if piece else []
        questions.append(parts)
    for i, reply in zip((0, 1, 3, 6), model.text_results(questions, max_tokens=32)):
        np.testing.assert_array_equal(reply.tokens, golden[f"answer_{i}"])


def forced(model, rows: list[np.ndarray]) -> list[np.ndarray]:
    """float32[n, V] logits of each row of text and codes, each token seeing those before it as recorded."""
    length = max(map(len, rows))
    tokens = np.stack([np.pad(row, (0, length - len(row))) for row in rows]).astype(np.int32)
    batch = {
        "tokens": tokens,
        "segments": np.ones_like(tokens),
        "image_feature_index": np.full_like(tokens, -1),
    }
    batch["positions"] = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    logits = np.asarray(jax.jit(model.apply)(model.params, batch))
    return [logits[k, : len(row)] for k, row in enumerate(rows)]


def leads(logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """float32[n]: how far the chosen token is ahead of the best other one; less than 0: how far behind."""
    rows = np.arange(len(chosen))
    own, others = logits[rows, chosen], logits.copy()
    others[rows, chosen] = -np.inf
    return own - others.max(-1)


# The largest difference measured between our logits and the record's. A choice less than twice that ahead is
# a matter of rounding, with guidance g (which adds up to 2 g - 1 differences) less than 2 (2 g - 1) times.
ROUNDING = 1e-5


@pytest.mark.slow
def test_no_answer_hangs_on_a_tie(model, examples, golden):
    smallest = {}
    for i in (0, 1, 3, 6):
        end = list(examples[i].tokens).index(model.tokenizer.vocabulary.end_of_turn) + 1
        chosen = golden[f"answer_{i}"]
        none = np.full(len(chosen), -1, np.int32)
        example = dataclasses.replace(
            examples[i],
            tokens=np.concatenate([examples[i].tokens[:end], chosen]).astype(np.int32),
            labels=np.concatenate([none, np.full(end, -1, np.int32)]),
            image_feature_index=np.concatenate([examples[i].image_feature_index[:end], none]),
            code_index=np.full(end + len(chosen), -1, np.int32),
        )
        logits = np.asarray(jax.jit(model.apply)(model.params, batch([example], model)))[0]
        smallest[i] = leads(logits[end - 1 :][: len(chosen)], chosen).min()
    print("least leads of answers", {i: f"{lead:.1e}" for i, lead in smallest.items()})
    assert min(smallest.values()) > 2 * ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "near_ties"), [(1, 1), (3, 0)])
def test_the_whole_image(guidance, near_ties, model, golden, conversations):
    prompt = conversations[5]["conversations"][0]["value"]
    # The record begins with the space that ends the prompt here, and goes on after the image to its limit.
    recorded = golden[f"generated_cfg{guidance}"]
    asked = build.build_text_to_image_prompt(prompt, model.tokenizer, model.config).tokens[:-2]
    logits, alone = forced(model, [np.concatenate([asked, recorded]), recorded[1:]])
    logits = logits[len(asked) :]
    (drawing,) = model.image_results([prompt], guidance=guidance, top_k=1, size=(512, 512))
    end = 1 + len(drawing.tokens)
    assert (len(recorded), end) == (1066, 1061)
    # What each place of the image saw, and how far the code recorded there was ahead.
    codes = model.tokenizer.vocabulary.codes_of_ids[recorded[:end]]
    drawn = np.flatnonzero(codes >= 0)
    guided = alone[drawn - 2] + guidance * (logits[drawn - 1] - alone[drawn - 2])
    lead = leads(guided[:, model.tokenizer.vocabulary.code_ids], codes[drawn])
    ahead = dict(zip(drawn.tolist(), lead.tolist()))
    least = ", ".join(f"{ahead[k]:.1e} at {k}" for k in sorted(ahead, key=ahead.get)[:3])
    print(f"guidance {guidance}: {len(drawn)} codes, least leads {least}")
    assert (lead < 2 * (2 * guidance - 1) * ROUNDING).sum() == near_ties
    np.testing.assert_array_equal(drawing.tokens, recorded[1:end], f"ties would be at: {least}")
    if guidance == 3:
        image = np.asarray(Image.open(REFERENCE / "generated_cfg3.png").convert("RGB"))
        bytes_agree(drawing.image, image)
    # What follows the image is plain text, without guidance: each id the likeliest after those before it.
    np.testing.assert_array_equal(logits[end - 1 : -1].argmax(-1), recorded[end:])


def _stacked(params: dict) -> dict:
    """The network's parameters as training has them."""
    return params | {"decoder": stack_layers(params["decoder"])}
