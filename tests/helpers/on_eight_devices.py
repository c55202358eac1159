"""What a mesh must not change, on eight simulated devices; `test_mesh.py` runs this in an own process."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers.host_data import DRAWING, QUESTION, TEXT, data_config, write_data
from tests.helpers.tiny_model import CONFIG, noise, tiny_model, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.config import Config, LoraConfig, MeshConfig, OptimizerConfig, ParameterGroup, TrainConfig
from unitoken_jax.data.loader import Loader
from unitoken_jax.generate.tokenize import tokenize
from unitoken_jax.model import sharding
from unitoken_jax.model.init import abstract_params, init_lora, init_params
from unitoken_jax.model.lora import merge_trees
from unitoken_jax.train.optimizer import peak_rates, stage_groups, transformation
from unitoken_jax.train.placement import initial_state, shard_batch, shardings_of
from unitoken_jax.train.state import flatten
from unitoken_jax.train.step import make_model, make_train_step
from unitoken_jax.unitoken import UniToken

ROWS, LENGTH, CROPS = 8, 72, 5
ROW = {"rows": ROWS, "row_length": LENGTH, "row_crops": CROPS}
MESHES = {
    "one device": MeshConfig(data=1, fsdp=1, tensor=1),
    "fsdp 8": MeshConfig(data=1, fsdp=8, tensor=1),
    "data 2, tensor 4": MeshConfig(data=2, fsdp=1, tensor=4),
    "2 x 2 x 2": MeshConfig(data=2, fsdp=2, tensor=2),
}
# Sizes that tell each axis from every other one in the compiled program.
MODEL = dataclasses.replace(
    CONFIG,
    siglip=dataclasses.replace(CONFIG.siglip, width=24, mlp=44),
    decoder=dataclasses.replace(CONFIG.decoder, width=48, mlp=56, dropout=0.1),
)


def make_mesh(name):
    config = MESHES[name]
    return sharding.make_mesh(config, jax.devices()[: config.data * config.fsdp * config.tensor])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions, drawings and text, with their codes beside them."""
    path = write_data(tmp_path_factory.mktemp("data"), [QUESTION, DRAWING, TEXT] * 9)
    tokenize(tiny_model(), path)
    return path


class Run:
    """A training run's parts on a mesh, and its steps."""

    def __init__(self, data, stage: int, codes: str, mesh, lora: LoraConfig = LoraConfig()):
        # Rates at which twenty steps show what the optimizer did.
        groups = [
            dataclasses.replace(group, learning_rate=30 * group.learning_rate)
            for group in stage_groups(stage)
        ]
        if lora.rank:
            groups = [ParameterGroup("lora_[ab]$", 3e-3)]
        self.config = Config(
            model=MODEL,
            data=data_config(data, codes=codes, **ROW, row_prefix=24 if stage == 1 else 0),
            optimizer=OptimizerConfig(groups=tuple(groups), warmup_fraction=0.1),
            lora=lora,
            train=TrainConfig(steps=20, dtype="float32", loss_chunk=30),
        )
        self.mesh = mesh
        self.loader = Loader(self.config.data, MODEL, tiny_tokenizer(), seed=stage)
        params = init_params(MODEL)
        if lora.rank:
            params = merge_trees(params, init_lora(MODEL, lora))
        rates = peak_rates(flatten(params), self.config.optimizer.groups)
        self.state, abstract = initial_state(self.config, params, rates, mesh)
        self.shardings = shardings_of(abstract)
        model = make_model(self.config, rates)
        self.step = make_train_step(model, self.config, rates, tiny_tokenizer().vocabulary, self.shardings)

    def batch(self):
        return shard_batch(next(self.loader), self.mesh)

    def twenty(self):
        """(metrics [20, 2], the batches' tokens [20, B, T])."""
        metrics, tokens = [], []
        with jax.set_mesh(self.mesh):
            for _ in range(20):
                batch = self.batch()
                self.state, found = self.step(self.state, batch)
                metrics.append([float(found["loss"]), float(found["grad_norm"])])
                tokens.append(np.asarray(batch["tokens"]))
        self.loader.close()
        return np.array(metrics), np.array(tokens)


# Every mesh with stage II; what the others train, and codes made online, on the one that splits everything.
@pytest.mark.parametrize(
    ("stage", "codes", "meshes", "lora"),
    [
        (1, "online", ["2 x 2 x 2"], LoraConfig()),
        (2, "offline", list(MESHES)[1:], LoraConfig()),
        (3, "offline", ["2 x 2 x 2"], LoraConfig()),
        (2, "offline", ["2 x 2 x 2"], LoraConfig(rank=4, dropout=0.1, targets="")),
    ],
    ids=["stage1", "stage2", "stage3", "lora"],
)
def test_losses_of_twenty_steps_are_those_of_one_device(data, stage, codes, meshes, lora):
    expected, rows = Run(data, stage, codes, make_mesh("one device"), lora).twenty()
    assert len(np.unique(rows, axis=0)) == 20
    for name in meshes:
        found, tokens = Run(data, stage, codes, make_mesh(name), lora).twenty()
        np.testing.assert_array_equal(tokens, rows, err_msg=name)
        np.testing.assert_allclose(found[:, 0], expected[:, 0], atol=1e-5, rtol=0, err_msg=name)
        np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=1e-4, err_msg=name)


def test_the_compiled_step_is_laid_out_as_the_table_says(data):
    """Parameters, moments and batch by their shardings, activations by what a device holds of them."""
    run = Run(data, 2, "offline", make_mesh("2 x 2 x 2"))
    with jax.set_mesh(run.mesh):
        compiled = run.step.lower(run.state, run.batch()).compile()
    run.loader.close()
    (state, frozen, batch, _), _ = compiled.input_shardings
    after, _ = compiled.output_shardings

    table = flatten(sharding.shardings(run.mesh, abstract_params(MODEL)))
    # A sharding of None: the program does not read it.
    given = {path: each for path, each in {**state.params, **frozen}.items() if each is not None}
    assert {path for path in table if path.startswith("vqgan/")} == table.keys() - given.keys()
    assert {path: each.spec for path, each in given.items()} == {path: table[path].spec for path in given}
    assert table["decoder/layers/mlp/up/kernel"].spec == P(None, "fsdp", "tensor")
    assert table["siglip/layers/q/kernel"].spec == P(None, "fsdp", "tensor")
    adam = state.opt_state[1]
    for moments in (adam.mu, adam.nu):
        assert {path: each.spec for path, each in moments.items()} == {
            path: table[path].spec for path in state.params
        }
    assert jax.tree.map(str, after) == jax.tree.map(str, run.shardings.replace(frozen={}))
    assert {each.spec for each in batch.values()} == {P(("data", "fsdp"))}

    found = shapes(compiled)
    rows, crops, patches = ROWS // 4, ROWS * CROPS // 8, MODEL.siglip.patches
    decoder, siglip = MODEL.decoder, MODEL.siglip
    kv = decoder.kv_heads // 2
    scores = (rows, kv, decoder.heads // 2 // kv * LENGTH, LENGTH)
    local = {
        "residual stream": (rows, LENGTH, decoder.width),
        "SwiGLU": (rows, LENGTH, decoder.mlp // 2),
        "queries": (rows, LENGTH, decoder.heads // 2, decoder.head_dim),
        "attention": scores,
        "logits": (1, 30, 1, decoder.vocab_size // 2),
        "ViT residual stream": (crops, patches, siglip.width),
        "ViT MLP": (crops, patches, siglip.mlp),
        "ViT attention": (crops, siglip.heads, patches, patches),
    }
    assert {name: shape in found for name, shape in local.items()} == dict.fromkeys(local, True)
    # And nowhere more than that: other devices' rows and crops, all of the MLP or the vocabulary.
    tokens = {LENGTH, rows * LENGTH}
    assert not [
        shape
        for shape in found
        if (ROWS, LENGTH) in itertools.pairwise(shape)
        or {ROWS * LENGTH, ROWS * CROPS * patches} & set(shape)
        or (decoder.mlp in shape and tokens & set(shape))
        or (siglip.mlp in shape and {2 * crops, 2 * crops * patches} & set(shape))
        or (decoder.vocab_size in shape and 30 in shape)
    ]


def shapes(compiled) -> set[tuple[int, ...]]:
    """Of every float32 array that a device holds in the compiled program."""
    return {tuple(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", compiled.as_text())}


def test_images_and_answers_are_those_of_one_device(tmp_path):
    save_model(tmp_path / "model", CONFIG, tiny_params(), tiny_tokenizer())
    asked = [[noise(0), "what is this ?"], ["how many are there ?"], [noise(1, 40, 16), "a", noise(2), "b"]]
    prompts = ["a red circle", "two blue squares"]
    made = []
    for mesh in (None, make_mesh("2 x 2 x 2")):
        model = UniToken.load(tmp_path / "model", mesh=mesh)
        drawings = model.image_results(prompts, seed=3, guidance=3.0, top_k=8)
        answers = [answer.tokens.tolist() for answer in model.text_results(asked)]
        made.append(([drawing.tokens.tolist() for drawing in drawings], answers, drawings[0].image))
    kernel = model.params["decoder"]["layers"]["0"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == P("fsdp", "tensor")
    assert made[1][:2] == made[0][:2]
    assert len({tuple(tokens) for tokens in made[0][1]}) == len(asked)
    difference = np.abs(np.asarray(made[1][2], int) - np.asarray(made[0][2], int))
    assert difference.max() <= 1  # a level: sums in another order


def test_muon_is_the_same_on_a_mesh():
    optimizer = transformation(OptimizerConfig(name="muon"))
    rng = np.random.default_rng(0)
    shapes = {"layers/up/kernel": (2, 16, 24), "lm_head/kernel": (16, 40), "norm/scale": (16,)}
    specs = {"layers/up/kernel": P(None, "fsdp", "tensor"), "lm_head/kernel": P("fsdp", "tensor")}
    params, gradients = (
        {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()} for _ in range(2)
    )
    update = jax.jit(lambda gradients, params: optimizer.update(gradients, optimizer.init(params), params)[0])
    expected = update(gradients, params)
    mesh = make_mesh("2 x 2 x 2")
    with jax.set_mesh(mesh):
        layout = {path: jax.NamedSharding(mesh, specs.get(path, P())) for path in params}
        found = update(jax.device_put(gradients, layout), jax.device_put(params, layout))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert all(jnp.isfinite(value).all() for value in expected.values())
