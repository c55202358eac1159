"""Drawing an image's tokens: this project against transformers, the same random Chameleon decoder, on a CPU.

    python benchmarks/generate_vs_transformers.py            # about 100M parameters, 512 px: 1,058 tokens
    python benchmarks/generate_vs_transformers.py --small    # seconds, to see that it runs
    python benchmarks/generate_vs_transformers.py --speculate 4 --quantize int8

One prompt, guidance 3, float32, greedy, so that all must choose the same ids. transformers' `generate` with a
static cache, once as the published code does guidance (a second pass a token, batch 1) and once with both
streams as rows of one pass. The peers' size and new-line ids are forced by a logits processor. Compiling is
not counted, and is printed. `--speculate W` also draws with windows of W tokens: of random weights, whose
tokens nothing predicts, that is the worst case. `--quantize` draws from 8-bit weights, too. Needs the extra
"parity".
"""

import argparse
import time

import jax
import numpy as np
import torch
import transformers
from flax import traverse_util
from transformers.models.chameleon import ChameleonConfig, ChameleonForConditionalGeneration

from unitoken_jax.config import DecoderConfig, ModelConfig
from unitoken_jax.generate import decode
from unitoken_jax.generate.sampling import sample_keys
from unitoken_jax.generate.timing import Clock
from unitoken_jax.model.decoder import unstack_layers
from unitoken_jax.model.quantize import QUANTIZED_KERNELS, bits_of, quantize_kernel
from unitoken_jax.model.unitoken import UniTokenModel

GUIDANCE = 3.0
PROMPT_TOKENS = 40
FULL = DecoderConfig(vocab_size=9216, width=768, depth=12, heads=12, kv_heads=12, mlp=2048)
SMALL = DecoderConfig(vocab_size=192, width=64, depth=2, heads=4, kv_heads=4, mlp=96)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny decoder and an image of 4 x 4 codes")
    parser.add_argument("--speculate", type=int, metavar="W", help="also with W tokens a pass")
    parser.add_argument("--quantize", choices=("int8",), help="also with weights and cache in 8 bits")
    arguments = parser.parse_args(argv)
    small = arguments.small
    config, side, codes = (SMALL, 4, 128) if small else (FULL, 32, 8192)
    peer = make_peer(config)
    count = sum(weight.numel() for weight in peer.parameters())
    print(
        f"{count / 1e6:.1f}M parameters, {side * (side + 1) + 2} tokens, guidance {GUIDANCE}, float32, greedy"
    )
    print(f"jax {jax.__version__}, torch {torch.__version__} ({torch.get_num_threads()} threads), ", end="")
    print(f"transformers {transformers.__version__}")

    # Codes come first in this vocabulary; the last ids are begin, the two sizes and new-line.
    begin, height, width, new_line = range(config.vocab_size - 4, config.vocab_size)
    text = np.random.default_rng(0).integers(codes, begin, PROMPT_TOKENS).tolist()
    row = [-1] * side + [new_line]
    forced = [height, width, *row * side]

    sides = config, decoder_params(peer, config), [*text, begin], [begin], forced, side, codes
    ours = draw_ours(*sides, window=1)
    times = {"unitoken_jax": ours[1]}
    if arguments.speculate:
        ids, seconds = draw_ours(*sides, window=arguments.speculate)
        times[f"unitoken_jax, {arguments.speculate} tokens a pass"] = seconds
        print(f"speculation: {np.sum(ids == ours[0])} of {len(forced)} ids are plain decoding's", flush=True)
    if arguments.quantize:
        ids, seconds = draw_ours(*sides, window=1, quantize=arguments.quantize)
        times[f"unitoken_jax, {arguments.quantize}"] = seconds
        print(
            f"{arguments.quantize}: {np.sum(ids == ours[0])} of {len(forced)} ids are float32's", flush=True
        )
    for name, guided in (("two passes", two_passes), ("one batched pass", one_pass)):
        start = time.perf_counter()
        ids = guided(peer, [*text, begin], [begin], forced, codes)
        times[f"transformers, {name}"] = time.perf_counter() - start
        print(f"transformers, {name}: {times[f'transformers, {name}']:.2f} s")
        same = int(np.argmin([*(ids == ours[0]), False]))
        print(f"transformers, {name}: the first {same} of {len(forced)} ids are ours", flush=True)
    for name, seconds in times.items():
        print(f"{name}: {seconds:.2f} s an image, {seconds / ours[1]:.2f} of ours")


def make_peer(config: DecoderConfig) -> ChameleonForConditionalGeneration:
    """transformers' model with random weights; its VQ-GAN, which it cannot do without, as small as can be."""
    torch.manual_seed(0)
    vq = {"base_channels": 32, "channel_multiplier": [1], "latent_channels": 4, "embed_dim": 4}
    model = ChameleonForConditionalGeneration(
        ChameleonConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.mlp,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=4096,
            vocabulary_map={"<image>": config.vocab_size - 1},
            vq_config=vq | {"num_embeddings": 16, "num_res_blocks": 1},
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "norm" not in name:  # from N(0, 1 / in), so that ids vary
                weight.normal_(0, 1 if "embed" in name else weight.shape[1] ** -0.5)
    return model


def decoder_params(peer, config: DecoderConfig) -> dict:
    """The peer's decoder weights as ours; its QK-norms hold a row a head, equal within each of our shards."""
    shard_heads = config.heads // config.qk_norm_shards
    weights = {name: weight.detach().numpy() for name, weight in peer.named_parameters()}

    def stack(name: str, change=lambda weight: weight) -> np.ndarray:
        return np.stack([change(weights[f"model.layers.{i}.{name}"]) for i in range(config.depth)])

    attention = {name: {"kernel": stack(f"self_attn.{name}_proj.weight", np.transpose)} for name in "qkvo"}
    for name in ("q_norm", "k_norm"):
        scale, bias = (
            stack(f"self_attn.{name}.{suffix}", lambda x: x[::shard_heads]) for suffix in ("weight", "bias")
        )
        attention[name] = {"scale": scale, "bias": bias}
    layers = {
        "attention": attention,
        "attention_norm": {"scale": stack("input_layernorm.weight")},
        "mlp": {n: {"kernel": stack(f"mlp.{n}_proj.weight", np.transpose)} for n in ("gate", "up", "down")},
        "mlp_norm": {"scale": stack("post_attention_layernorm.weight")},
    }
    return {
        "embed": {"embedding": weights["model.embed_tokens.weight"]},
        "layers": layers,
        "norm": {"scale": weights["model.norm.weight"]},
        "lm_head": {"kernel": weights["lm_head.weight"].T},
    }


def draw_ours(config, params, conditional, unconditional, forced, side, codes, window, quantize=None):
    """The ids after begin-of-image int32[N], and the seconds that took without compiling."""
    module = UniTokenModel(ModelConfig(decoder=config), cache_dtype=quantize and np.dtype(quantize))
    flat = traverse_util.flatten_dict({"decoder": params}, sep="/")
    for path in filter(QUANTIZED_KERNELS.match, flat) if quantize else ():
        flat[path] = quantize_kernel(flat[path], bits_of(quantize))
    params = jax.device_put(traverse_util.unflatten_dict(flat, sep="/"))
    prompts = [np.array([*prompt, *forced[:2]], np.int32) for prompt in (conditional, unconditional)]
    stacked = decode.pad_prompts([decode.Prompt(p, np.full(len(p), -1, np.int32)) for p in prompts], 2)
    drawn = np.array(forced[2:], np.int32)
    sampling = decode.SamplingParams(
        top_k=np.int32(1),
        temperature=np.float32(1),
        guidance=np.float32(GUIDANCE),
        forced=drawn,
        ids=np.arange(codes, dtype=np.int32),
        ends=np.zeros(0, np.int32),
        stride=np.int32(side + 1),
    )
    spec, slots = decode.DecodeSpec(window, guided=True), stacked.tokens.shape[1] + len(drawn)
    keys, limits = sample_keys(0, [0]), np.array([len(drawn) - 1], np.int32)
    clock, params = Clock(), {**params, "decoder": unstack_layers(params["decoder"])}
    arguments = module, params, stacked, keys, limits, sampling
    state = clock.prefill(*arguments, slots=slots, spec=spec)
    arguments = module, params, state, sampling, np.int32(1), np.int32(len(drawn))
    state = clock.write(*arguments, spec=spec)
    print(f"unitoken_jax, window {window}: {clock.timing}", flush=True)
    return np.array(
        [*forced[:2], *state.tokens[0, : len(drawn)]]
    ), clock.timing.prefill + clock.timing.decoding


class Grammar(transformers.LogitsProcessor):
    """Lets through the forced id of this place, or codes alone."""

    def __init__(self, forced, codes: int, prompt: int):
        self.forced, self.codes, self.prompt = forced, codes, prompt

    def __call__(self, input_ids, scores):
        forced = self.forced[input_ids.shape[1] - self.prompt]
        allowed = slice(0, self.codes) if forced < 0 else slice(forced, forced + 1)
        masked = torch.full_like(scores, -torch.inf)
        masked[:, allowed] = scores[:, allowed]
        return masked


class TwoPasses(transformers.LogitsProcessor):
    """Guidance by a pass of its own for the unconditional stream, with its own static cache."""

    def __init__(self, model, unconditional, length: int):
        self.model, self.next, self.place = model, torch.tensor([unconditional]), 0
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=length)

    def __call__(self, input_ids, scores):
        read = input_ids[:, -1:] if self.place else self.next
        places = torch.arange(self.place, self.place + read.shape[1])
        out = self.model(read, past_key_values=self.cache, cache_position=places, use_cache=True)
        self.place += read.shape[1]
        free = out.logits[:, -1].float()
        return free + GUIDANCE * (scores - free)


class OnePass(transformers.LogitsProcessor):
    """Guidance between the two rows of a batch; both get the result."""

    def __call__(self, input_ids, scores):
        conditional, free = scores
        return (free + GUIDANCE * (conditional - free)).expand(2, -1).clone()


def _generate(peer, prompts, mask, forced, codes, guidance) -> np.ndarray:
    processors = [guidance, Grammar(forced, codes, prompts.shape[1])]
    with torch.inference_mode():
        ids = peer.generate(
            prompts,
            attention_mask=mask,
            logits_processor=transformers.LogitsProcessorList(processors),
            cache_implementation="static",
            max_new_tokens=len(forced),
            do_sample=False,
        )
    return ids[0, prompts.shape[1] :].numpy()


def two_passes(peer, conditional, unconditional, forced, codes) -> np.ndarray:
    """Ids of an image, the second stream read apart."""
    prompt = torch.tensor([conditional])
    guidance = TwoPasses(peer, unconditional, len(unconditional) + len(forced))
    return _generate(peer, prompt, torch.ones_like(prompt), forced, codes, guidance)


def one_pass(peer, conditional, unconditional, forced, codes) -> np.ndarray:
    """Ids of an image, both streams in one batch; the shorter prompt padded at its left."""
    padding = len(conditional) - len(unconditional)
    prompts = torch.tensor([conditional, [0] * padding + unconditional])
    mask = torch.ones_like(prompts)
    mask[1, :padding] = 0
    return _generate(peer, prompts, mask, forced, codes, OnePass())


if __name__ == "__main__":
    main()
