"""Every file in configs/ loads, and what it describes builds: shapes, stages, sequence."""

import pathlib

import flax.linen as nn
import jax
import pytest
from flax.traverse_util import flatten_dict

from unitoken_jax.ablate.cells import CELLS
from unitoken_jax.config_file import load_config
from unitoken_jax.model.init import abstract_params
from unitoken_jax.train.optimizer import peak_rates

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
RUNS = sorted(str(path) for path in CONFIGS.glob("*.py"))
RUNS += [f"{CONFIGS}/stage2.py:unitoken_34b"]
RUNS += [f"{CONFIGS}/ablations.py:{cell.name}" for cell in CELLS]
RUNS += [f"{CONFIGS}/quickstart.py:{stage}" for stage in ("stage1", "stage3")]


def paths(config):
    return flatten_dict(nn.meta.unbox(abstract_params(config.model)), sep="/")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: pathlib.Path(run).name)
def test_builds(run):
    config = load_config(run)
    parameters = paths(config)
    if config.optimizer.groups:
        assert set(peak_rates(parameters, config.optimizer.groups)) <= set(parameters)
        assert config.data.sources
        assert config.train.steps > 0


@pytest.mark.parametrize(("model", "billions"), [("unitoken_7b", 7.01), ("unitoken_34b", 34.29)])
def test_decoder_sizes(model, billions):
    decoder = abstract_params(load_config(f"{CONFIGS}/{model}.py").model)["decoder"]
    count = sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(decoder)))
    assert count / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize(
    ("stage", "shares"),
    [
        (1, {"sharegpt4v": 0.495, "llava": 0.222, "allava": 0.282}),
        (2, {"midjourney": 0.5, "pdfa": 0.15, "textocr": 0.00125, "sharegpt4v": 0.01}),
        (3, {"instruct": 423 / 523}),
    ],
)
def test_stages_mix_what_the_paper_says(stage, shares):
    """Section 3.2 and Table 1, as shares of samples; a sum of 10M + 9.999M is 20M to the paper's digits."""
    data = load_config(f"{CONFIGS}/stage{stage}.py").data
    assert data.mix == "examples"
    total = sum(source.weight for source in data.sources)
    found = {pathlib.Path(source.path).parent.name: source.weight / total for source in data.sources}
    assert len(found) == {1: 3, 2: 14, 3: 2}[stage]
    for name, share in shares.items():
        assert found[name] == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize(("name", "shares"), [("unified-joint", (10, 10)), ("unified-small-2to1", (2, 1))])
def test_ablations_mix_and_size_what_the_paper_says(name, shares):
    """Tables 5 and 6, in millions of examples; without any-res images (section 4.3)."""
    config = load_config(f"{CONFIGS}/ablations.py:{name}")
    *read, drawn = config.data.sources
    assert (sum(source.weight for source in read), drawn.weight) == pytest.approx(shares)
    assert config.model.sequence.resolution == "base"
    batches = sum(shares) * 1e6 / config.train.steps
    assert 110 < batches < 150  # about 128 examples a step, as in Table 2
    assert not load_config(f"{CONFIGS}/ablations.py:generation").data.sources[1:]


def test_stages_train_what_table_2_says():
    seen = {}
    for stage in (1, 2, 3):
        config = load_config(f"{CONFIGS}/stage{stage}.py")
        rates = peak_rates(paths(config), config.optimizer.groups)
        seen[stage] = {part: {rates[path] for path in rates if path.startswith(part)} for part in PARTS}
    assert seen[1] == {"siglip": {1e-5}, "adapter": {1e-3}, "decoder": set(), "vqgan": set()}
    assert seen[2] == seen[3] == {"siglip": {1e-5}, "adapter": {1e-5}, "decoder": {1e-5}, "vqgan": set()}


PARTS = ("siglip", "adapter", "decoder", "vqgan")
