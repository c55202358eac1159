"""Settings of published files: whatever a damaged one says, a configuration or a clear error."""

import json

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unitoken_jax.config import ModelConfig
from unitoken_jax.convert.torch import configs
from unitoken_jax.convert.torch.report import ConversionError
from unitoken_jax.quickstart import recipe

NUMBERS = st.one_of(st.integers(), st.integers(-3, 70), st.floats(), st.booleans(), st.none())
VALUES = st.one_of(
    NUMBERS, st.text(max_size=3), st.lists(NUMBERS, max_size=4), st.dictionaries(st.text(), NUMBERS)
)
DEFAULTS = ModelConfig()
DECODER = configs.published_config(DEFAULTS, {}, "bfloat16")
SIGLIP = configs.published_siglip(DEFAULTS.siglip)
VQ = configs.published_vq(DEFAULTS.vq)


@st.composite
def damaged(draw, table):
    """`table` with up to three of its entries, at any depth, changed or gone."""
    table = json.loads(json.dumps(table))
    for _ in range(draw(st.integers(1, 3))):
        place = table
        while isinstance(inner := place[key := draw(st.sampled_from(sorted(place)))], dict) and inner:
            if draw(st.integers(0, 3)) == 0:
                break
            place = inner
        place[key] = draw(VALUES)
        if draw(st.integers(0, 7)) == 0:
            del place[key]
        if not table:
            break
    return table


def reads(read, *arguments) -> bool:
    """Whether it is read; then what its shapes are made of has bounds."""
    try:
        found = read(*arguments)
    except ConversionError:
        return False
    numbers = [] if isinstance(found, str) else vars(found).values()
    assert max((value for value in numbers if isinstance(value, int)), default=0) <= 2**20
    return True


@given(damaged(DECODER))
def test_a_damaged_config(values):
    for read in (configs.decoder_config, configs.vq_config_of_json, configs.resolution_of):
        reads(read, values, "config.json")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=damaged(SIGLIP), vq=damaged(VQ))
def test_damaged_folders(tmp_path, values, vq):
    (tmp_path / "config.json").write_text(json.dumps(values))
    if reads(configs.siglip_config, tmp_path):
        assert configs.siglip_config(tmp_path).grid > 0
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(vq))
    if reads(configs.vq_config_of_yaml, tmp_path / "vqgan.yaml"):
        assert configs.vq_config_of_yaml(tmp_path / "vqgan.yaml").stride < 2**12


def test_the_undamaged_are_read():
    assert reads(configs.decoder_config, DECODER, "config.json")
    assert reads(configs.vq_config_of_json, DECODER, "config.json")


def test_a_vqgan_without_residual_blocks_comes_back(tmp_path):
    """The quickstart's: what `export` writes `convert` must read."""
    vq = recipe.model_config().vq
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(configs.published_vq(vq)))
    assert configs.vq_config_of_yaml(tmp_path / "vqgan.yaml") == vq
    exported = configs.published_config(recipe.model_config(), {}, "float32")
    assert configs.vq_config_of_json(exported, "config.json") == vq
