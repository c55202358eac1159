"""Random `transformers` models of other shapes, saved as published, converted and run: the same numbers."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.helpers.tiny_model import CODES, tiny_tokenizer

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install 'unitoken_jax[parity]'")
chameleon = pytest.importorskip("transformers.models.chameleon", reason="needs the parity extra")
siglip = pytest.importorskip("transformers.models.siglip", reason="needs the parity extra")

from tests.helpers.torch_weights import randomise  # noqa: E402
from unitoken_jax.convert.from_torch import ConvertOptions, convert  # noqa: E402
from unitoken_jax.generate.vq import encode_images  # noqa: E402
from unitoken_jax.unitoken import UniToken  # noqa: E402

pytestmark = pytest.mark.parity
TEXT = 48


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes of one conversion."""

    heads: int
    kv_heads: int
    shards: int
    output_norm: bool
    side: int
    patch: int
    multipliers: tuple[int, ...]


CASES = {
    "grouped queries, odd side": Case(4, 2, 1, False, 31, 7, (1, 2)),
    "shards 2, output norm": Case(4, 2, 2, True, 24, 8, (1, 1, 1)),
    "shards 4, no grouping": Case(8, 8, 4, True, 45, 14, (1,)),
}


def decoder_peer(case: Case):
    peer = chameleon.ChameleonForConditionalGeneration(
        chameleon.ChameleonConfig(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=case.heads,
            num_key_value_heads=case.kv_heads,
            model_parallel_size=case.shards,
            swin_norm=case.output_norm,
            rope_theta=500.0,
            vocabulary_map={"<image>": 399},
            vq_config={
                "base_channels": 32,
                "channel_multiplier": list(case.multipliers),
                "latent_channels": 6,
                "embed_dim": 6,
                "num_embeddings": CODES,
                "num_res_blocks": 1,
            },
            attn_implementation="eager",
        )
    ).eval()
    randomise(peer)
    with torch.no_grad():
        for layer in peer.model.layers:
            for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                for weight in (norm.weight, norm.bias):
                    rows = weight[:: len(weight) // case.shards]
                    weight.copy_(rows.repeat_interleave(len(weight) // case.shards, 0))
    return peer


def siglip_peer(case: Case):
    vision = siglip.SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=case.side,
        patch_size=case.patch,
    )
    words = siglip.SiglipTextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    config = siglip.SiglipConfig(text_config=words.to_dict(), vision_config=vision.to_dict())
    peer = siglip.SiglipModel(config).eval()
    randomise(peer.vision_model)
    return peer


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers(name, tmp_path):
    case = CASES[name]
    torch.manual_seed(0)
    decoder, tower = decoder_peer(case), siglip_peer(case)
    decoder.save_pretrained(tmp_path / "decoder", max_shard_size="40kB")
    tower.save_pretrained(tmp_path / "siglip")
    tiny_tokenizer().save(tmp_path / "decoder" / "tokenizer.json")
    options = ConvertOptions(image_size=32, verify=True)
    convert(tmp_path / "decoder", tmp_path / "siglip", out=tmp_path / "model", options=options)
    model = UniToken.load(tmp_path / "model", dtype="float32")

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 399, (2, TEXT)).astype(np.int32)
    crops = rng.integers(0, 256, (2, case.side, case.side, 3), np.uint8)
    images = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    with torch.no_grad():
        hidden = decoder.model(input_ids=torch.tensor(tokens).long())[0]
        logits = torch.nn.functional.linear(hidden, decoder.lm_head.weight)
        pixels = torch.tensor(crops.transpose(0, 3, 1, 2) / 127.5 - 1, dtype=torch.float32)
        patches = tower.vision_model(pixels).last_hidden_state
        pixels = torch.tensor(images.transpose(0, 3, 1, 2) / 127.5 - 1, dtype=torch.float32)
        codes = decoder.model.vqmodel.encode(pixels)[2].reshape(2, -1)

    row = {
        "tokens": tokens,
        "segments": np.ones_like(tokens),
        "image_feature_index": np.full_like(tokens, -1),
    }
    row["positions"] = np.broadcast_to(np.arange(TEXT, dtype=np.int32), tokens.shape)
    np.testing.assert_allclose(jax.jit(model.apply)(model.params, row), logits.numpy(), atol=1e-4)
    tower_here = jax.jit(
        lambda params, x: model.module.apply({"params": params}, x, method=lambda m, x: m.siglip(x))
    )
    np.testing.assert_allclose(tower_here(model.network_params, crops), patches.numpy(), atol=1e-4)
    found = encode_images(model, images, 2).reshape(2, -1)
    np.testing.assert_array_equal(found, codes.numpy())
    assert len(np.unique(found)) > 2
