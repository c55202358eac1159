"""SigLIP layer by layer against transformers' SiglipVisionModel, random weights, float32."""

import jax
import numpy as np
import pytest

from tests.helpers.networks import layer

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install 'unitoken_jax[parity]'")
transformers = pytest.importorskip("transformers", reason="needs the parity extra")

from unitoken_jax.config import SiglipConfig  # noqa: E402
from unitoken_jax.model.siglip import Siglip, SiglipBlock  # noqa: E402

pytestmark = pytest.mark.parity

CONFIG = SiglipConfig(image_size=20, patch_size=6, width=24, depth=3, heads=3, mlp=40)
PARTS = {
    "attention_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    model = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=CONFIG.width,
            intermediate_size=CONFIG.mlp,
            num_hidden_layers=CONFIG.depth,
            num_attention_heads=CONFIG.heads,
            image_size=CONFIG.image_size,
            patch_size=CONFIG.patch_size,
            vision_use_head=False,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0, 0.3)
            if "norm" in name and name.endswith("weight"):
                weight += 1
    return model


@pytest.fixture(scope="module")
def params(peer):
    weights = {name.removeprefix("vision_model."): p.detach().numpy() for name, p in peer.named_parameters()}

    def block(name: str, i: int) -> dict:
        weight, bias = (weights[f"encoder.layers.{i}.{PARTS[name]}.{leaf}"] for leaf in ("weight", "bias"))
        return {"scale": weight, "bias": bias} if weight.ndim == 1 else {"kernel": weight.T, "bias": bias}

    layers = [{name: block(name, i) for name in PARTS} for i in range(CONFIG.depth)]
    patch = weights["embeddings.patch_embedding.weight"]
    return {
        "patch_embed": {
            "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, CONFIG.width),
            "bias": weights["embeddings.patch_embedding.bias"],
        },
        "position_embed": {"embedding": weights["embeddings.position_embedding.weight"]},
        "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
        "norm": {"scale": weights["post_layernorm.weight"], "bias": weights["post_layernorm.bias"]},
    }


def test_every_layer(peer, params):
    crops = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
    pixels = torch.tensor(crops.transpose(0, 3, 1, 2) / 127.5 - 1, dtype=torch.float32)
    with torch.no_grad():
        expected = peer(pixels, output_hidden_states=True)
    block = jax.jit(lambda params, x: SiglipBlock(CONFIG).apply({"params": params}, x)[0])
    states = [state.numpy() for state in expected.hidden_states]
    for i in range(CONFIG.depth):
        np.testing.assert_allclose(block(layer(params["layers"], i), states[i]), states[i + 1], atol=1e-4)
    found = jax.jit(lambda: Siglip(CONFIG).apply({"params": params}, crops))()
    np.testing.assert_allclose(found, expected.last_hidden_state.numpy(), atol=1e-4)
