"""Decoder and VQ-GAN layer by layer against transformers' Chameleon, random weights, float32.

transformers has no VQ-GAN decoder; its residual and attention blocks build one here.
"""

import re

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from tests.helpers.networks import layer

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install 'unitoken_jax[parity]'")
peers = pytest.importorskip("transformers.models.chameleon", reason="needs the parity extra")

from transformers.models.chameleon import modeling_chameleon as blocks  # noqa: E402

from tests.helpers.torch_weights import TorchDecoder, randomise  # noqa: E402
from unitoken_jax.config import DecoderConfig, VQConfig  # noqa: E402
from unitoken_jax.model.decoder import Decoder, DecoderBlock, init_cache  # noqa: E402
from unitoken_jax.model.layers import rope_table  # noqa: E402
from unitoken_jax.model.vqgan import VQModel  # noqa: E402

pytestmark = pytest.mark.parity

T = 40  # long enough for a wrong rotation to show
PRE = DecoderConfig(vocab_size=96, width=32, depth=3, heads=4, kv_heads=4, mlp=48, rope_theta=500.0)
OUTPUT = DecoderConfig(
    vocab_size=96, width=64, depth=2, heads=8, kv_heads=4, mlp=48, qk_norm_shards=2, norm="output"
)


def decoder_peer(config: DecoderConfig):
    """transformers' model, its QK-norm rows equal within each of our shards."""
    model = blocks.ChameleonForConditionalGeneration(
        peers.ChameleonConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.mlp,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            rope_theta=config.rope_theta,
            rms_norm_eps=config.norm_eps,
            swin_norm=config.norm == "output",
            vocabulary_map={"<image>": 95},
            vq_config={"base_channels": 32, "channel_multiplier": [1], "latent_channels": 4, "embed_dim": 4},
            attn_implementation="eager",
        )
    ).eval()
    randomise(model.model.layers, seed=0)
    randomise(model.model.norm, seed=0)
    with torch.no_grad():
        for block in model.model.layers:
            for norm in (block.self_attn.q_norm, block.self_attn.k_norm):
                for leaf in (norm.weight, norm.bias):
                    each = len(leaf) // config.qk_norm_shards
                    leaf.copy_(leaf[::each].repeat_interleave(each, dim=0))
    return model


def decoder_params(model, config: DecoderConfig) -> dict:
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}

    def block(i: int) -> dict:
        def weight(name: str) -> np.ndarray:
            return weights[f"model.layers.{i}.{name}"]

        def rows(name: str) -> np.ndarray:
            leaf = weight(f"self_attn.{name}")
            return leaf[:: len(leaf) // config.qk_norm_shards]

        return {
            "attention": {n: {"kernel": weight(f"self_attn.{n}_proj.weight").T} for n in "qkvo"}
            | {
                f"{n}_norm": {"scale": rows(f"{n}_norm.weight"), "bias": rows(f"{n}_norm.bias")} for n in "qk"
            },
            "attention_norm": {"scale": weight("input_layernorm.weight")},
            "mlp": {n: {"kernel": weight(f"mlp.{n}_proj.weight").T} for n in ("gate", "up", "down")},
            "mlp_norm": {"scale": weight("post_attention_layernorm.weight")},
        }

    return {
        "embed": {"embedding": weights["model.embed_tokens.weight"]},
        "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *map(block, range(config.depth))),
        "norm": {"scale": weights["model.norm.weight"]},
        "lm_head": {"kernel": weights["lm_head.weight"].T},
    }


@pytest.mark.parametrize("config", [PRE, OUTPUT], ids=["pre", "output-gqa-shards"])
def test_decoder(config):
    model = decoder_peer(config)
    params = decoder_params(model, config)
    tokens = np.random.default_rng(0).integers(0, 95, (2, T))
    with torch.no_grad():
        expected = model.model(torch.tensor(tokens), output_hidden_states=True, use_cache=False)
        logits = model.lm_head(expected.last_hidden_state).numpy()
    states = [state.numpy() for state in expected.hidden_states]
    segments, positions = np.ones((2, T), np.int32), np.tile(np.arange(T, dtype=np.int32), (2, 1))
    rope = rope_table(positions, config.head_dim, config.rope_theta)

    @jax.jit
    def block(params, x):
        return DecoderBlock(config).apply({"params": params}, x, rope, segments, positions, True)[0]

    for i in range(config.depth - 1):  # the last state is after the final norm
        np.testing.assert_allclose(block(layer(params["layers"], i), states[i]), states[i + 1], atol=1e-4)

    @jax.jit
    def whole(tokens):
        bind = Decoder(config).bind({"params": params})
        x = bind.embed(tokens)
        hidden = bind(x, segments, positions)
        return hidden, bind.logits(hidden), bind.extend(x, positions, init_cache(config, 2, T))[0]

    hidden, found, extended = whole(tokens)
    np.testing.assert_allclose(hidden, states[-1], atol=1e-4)
    np.testing.assert_allclose(extended, states[-1], atol=1e-4)
    np.testing.assert_allclose(found, logits, atol=1e-4)


VQ = VQConfig(
    codes=64,
    embed_dim=6,
    latent_channels=8,
    base_channels=32,
    channel_multipliers=(1, 2),
    res_blocks=1,
    resolution=16,
    attention_resolutions=(8,),
)


def vq_params(model) -> dict:
    flat = {}
    for name, weight in model.named_parameters():
        value = weight.detach().numpy()
        if name == "quantize.embedding.weight":
            flat["codebook",] = value
            continue
        name = re.sub(r"(down|up)\.(\d+)\.block\.", r"\1_\2.block_", name)
        name = re.sub(r"(down|up)\.(\d+)\.attn\.", r"\1_\2.attention_", name)
        name = re.sub(r"(?:down|up)\.(\d+)\.(down|up)sample\.conv", r"\2sample_\1", name)
        name = (
            name.replace("attn_1", "attention").replace("nin_shortcut", "shortcut").replace("proj_out", "o")
        )
        *path, leaf = name.split(".")
        if leaf == "weight":
            leaf = "kernel" if value.ndim == 4 else "scale"
        flat[*path, leaf] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return unflatten_dict(flat)


def test_vqgan():
    config = peers.ChameleonVQVAEConfig(
        embed_dim=VQ.embed_dim,
        num_embeddings=VQ.codes,
        latent_channels=VQ.latent_channels,
        resolution=VQ.resolution,
        base_channels=VQ.base_channels,
        channel_multiplier=list(VQ.channel_multipliers),
        num_res_blocks=VQ.res_blocks,
        attn_resolutions=list(VQ.attention_resolutions),
    )
    model = blocks.ChameleonVQVAE(config).eval()
    model.decoder = TorchDecoder(config).eval()
    randomise(model, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2) / 127.5 - 1, dtype=torch.float32)
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(pixels))
        quantized, _, codes = model.quantize(latents)
        made = model.decoder(model.post_quant_conv(quantized))

    @jax.jit
    def run(params):
        bind = VQModel(VQ).bind({"params": params})
        latents = bind.encode(images)
        nearest, codes = bind.quantize(latents)
        return latents, nearest, codes, bind.decode(codes)

    expected = [t.numpy().transpose(0, 2, 3, 1) for t in (latents, quantized, made)]
    found_latents, found_quantized, found_codes, found_made = run(vq_params(model))
    np.testing.assert_allclose(found_latents, expected[0], atol=1e-4)
    np.testing.assert_array_equal(found_codes.reshape(-1), codes.numpy())
    np.testing.assert_allclose(found_quantized, expected[1], atol=1e-4)
    np.testing.assert_allclose(found_made, expected[2], atol=1e-4)
    assert len(np.unique(codes)) > 8
