"""Adapters over `transformers`' Chameleon decoder by `peft` itself: the same numbers, in both directions."""

import json
import shutil

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install 'unitoken_jax[parity]'")
pytest.importorskip("transformers", reason="needs the parity extra")
hub = pytest.importorskip("peft", reason="needs the parity extra")

from transformers import ChameleonConfig, ChameleonForConditionalGeneration  # noqa: E402

from tests.helpers.adapters import save_trained  # noqa: E402
from tests.helpers.released_files import PUBLISHED, published_params  # noqa: E402
from tests.helpers.tiny_model import tiny_tokenizer  # noqa: E402
from unitoken_jax.checkpoint.adapter import attach, load_adapter  # noqa: E402
from unitoken_jax.checkpoint.model_directory import load_model, save_model  # noqa: E402
from unitoken_jax.config import LoraConfig  # noqa: E402
from unitoken_jax.convert import export, export_peft, import_peft  # noqa: E402
from unitoken_jax.convert.torch import peft  # noqa: E402
from unitoken_jax.model.decoder import Decoder  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of torch and `peft`, unless a test reads them
]
TOKENS = np.random.default_rng(0).integers(5, 60, (2, 24)).astype(np.int32)
WHOLE = (
    *("adapter/up/kernel", "siglip/norm/scale", "decoder/embed/embedding", "decoder/lm_head/kernel"),
    *("decoder/norm/scale", "decoder/layers/attention_norm/scale"),
    *(f"decoder/layers/attention/{name}_norm/{leaf}" for name in "qk" for leaf in ("scale", "bias")),
)
LORA = LoraConfig(rank=3, alpha=5.0, targets="^(decoder|siglip)/layers/")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The small model as a model directory, "model", and as `transformers` reads it, "decoder"."""
    root = tmp_path_factory.mktemp("peft")
    save_model(root / "model", PUBLISHED, published_params(), tiny_tokenizer())
    export(root / "model", root / "decoder", per_head=True)
    return root


def theirs(places):
    """A new decoder of `transformers`, float32. Its VQ-GAN, which the export leaves out, has the fewest
    channels that are possible there."""
    config = ChameleonConfig.from_pretrained(places / "decoder")
    config.vq_config.base_channels, config.vq_config.channel_multiplier = 32, [1]
    return ChameleonForConditionalGeneration.from_pretrained(
        places / "decoder", config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def their_logits(model) -> np.ndarray:
    """Without the masking of image tokens that is done after the output layer."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.no_grad():
        hidden = inner.model(torch.tensor(TOKENS, dtype=torch.int64), use_cache=False).last_hidden_state
        return inner.lm_head(hidden).numpy()


@jax.jit
def run(params):
    decoder = Decoder(PUBLISHED.decoder).bind({"params": params})
    positions = np.tile(np.arange(TOKENS.shape[1], dtype=np.int32), (len(TOKENS), 1))
    return decoder.logits(decoder(decoder.embed(TOKENS), np.ones_like(TOKENS), positions))


def our_logits(places, adapter=None) -> np.ndarray:
    config, params, _, _ = load_model(places / "model", dtype=np.float32)
    if adapter is not None:
        params = attach(load_adapter(adapter), config, params)
    return np.asarray(run(params["decoder"]))


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_over_transformers_is_our_adapter(places, tmp_path, rslora, recwarn):
    """Pairs, and what was trained whole; and `peft` saves again what we read again, SigLIP's included."""
    lora = LoraConfig(3, 5.0, rslora, 0.0, LORA.targets)
    tuned = save_trained(tmp_path / "tuned", places / "model", PUBLISHED, lora, WHOLE)
    export_peft(tuned, tmp_path / "peft")
    recwarn.clear()
    model = hub.PeftModel.from_pretrained(theirs(places), str(tmp_path / "peft")).eval()
    said = [str(warning.message) for warning in recwarn]
    assert not [text for text in said if "missing adapter keys" in text or "Unexpected keyword" in text]
    expected = our_logits(places, tuned)
    np.testing.assert_allclose(their_logits(model), expected, atol=1e-5)
    assert np.abs(expected - our_logits(places)).max() > 0.5
    if rslora:
        return
    model.save_pretrained(str(tmp_path / "saved"))
    shutil.copy(tmp_path / "peft" / peft.UNITOKEN_WEIGHTS, tmp_path / "saved")
    import_peft(tmp_path / "saved", places / "model", tmp_path / "back")
    before, after = load_adapter(tuned), load_adapter(tmp_path / "back")
    assert after.lora.scale == before.lora.scale
    assert after.params.keys() == before.params.keys()
    for path, value in before.params.items():
        np.testing.assert_array_equal(after.params[path], value, err_msg=path)


@pytest.mark.parametrize(
    ("settings", "dtype", "file"),
    [
        ({"target_modules": ["q_proj", "v_proj"], "lora_alpha": 7}, "float32", peft.WEIGHTS),
        ({"target_modules": "all-linear", "use_rslora": True}, "float32", peft.PICKLE),
        (
            {"target_modules": ["up_proj"], "alpha_pattern": {"up_proj": 3}, "modules_to_save": ["lm_head"]},
            "bfloat16",
            peft.WEIGHTS,
        ),
    ],
    ids=["alpha", "all-linear, rsLoRA, torch's file", "alpha_pattern, lm_head, bfloat16"],
)
def test_what_peft_made_is_ours(places, tmp_path, settings, dtype, file):
    torch.manual_seed(0)
    base = theirs(places)
    model = hub.get_peft_model(base, hub.LoraConfig(r=4, task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
                weight.copy_(weight.to(getattr(torch, dtype)))
    expected = their_logits(model)
    if dtype != "float32":
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.data = weight.data.to(getattr(torch, dtype))
    model.save_pretrained(str(tmp_path / "peft"), safe_serialization=file == peft.WEIGHTS)
    assert (tmp_path / "peft" / file).is_file()
    assert json.loads((tmp_path / "peft" / peft.CONFIG).read_text())["r"] == 4
    import_peft(tmp_path / "peft", places / "model", tmp_path / "tuned")
    np.testing.assert_allclose(our_logits(places, tmp_path / "tuned"), expected, atol=1e-5)
    assert np.abs(expected - our_logits(places)).max() > 0.1
