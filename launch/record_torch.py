"""Records what PyTorch computes from published weights, for `unitoken inspect MODEL --against RECORD.npz`.

    python record_torch.py --checkpoint UNITOKEN [--siglip SIGLIP] --out record.npz [--dtype bfloat16]

Needs torch, transformers and safetensors, nothing of unitoken_jax. The decoder and SigLIP are `transformers`'
own modules; a QK-norm with a row a shard, as published, gets a row a head. One row of random text ids and one
random image go through; every layer's output is kept.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from safetensors import safe_open
from transformers import ChameleonConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.models.chameleon.modeling_chameleon import ChameleonForConditionalGeneration

TOKENS, LAST = 32, 4  # ids of the row, positions whose logits are kept
KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "attention_bias",
    "model_parallel_size",
    "swin_norm",
)


def read(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in sorted(file.keys())}
    for path in sorted(folder.glob("pytorch_model*.bin")):
        tensors |= torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not tensors:
        raise SystemExit(f"{folder} has no *.safetensors and no pytorch_model*.bin")
    return tensors


def load(module: torch.nn.Module, tensors: dict, prefix: str) -> None:
    """Every parameter of `module` from `prefix` + its name."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if prefix + name not in tensors:
                raise SystemExit(f"the checkpoint lacks {prefix + name}")
            value = tensors[prefix + name]
            if "_norm." in name and value.ndim == 2 and value.shape != parameter.shape:
                value = value.repeat_interleave(parameter.shape[0] // value.shape[0], dim=0)
            parameter.copy_(value)


def outputs(layers, run) -> np.ndarray:
    """float32[1 + layers, ...]: the first layer's input and each layer's output, of one row."""
    kept = []

    def first(_, args, named):
        kept.append(args[0] if args else named["hidden_states"])

    hooks = [layers[0].register_forward_pre_hook(first, with_kwargs=True)]
    hooks += [layer.register_forward_hook(lambda *call: kept.append(call[-1])) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    states = [state[0] if isinstance(state, tuple) else state for state in kept]
    return np.stack([state[0].float().numpy() for state in states])


def decoder(folder: pathlib.Path, tensors: dict, dtype: torch.dtype) -> dict[str, np.ndarray]:
    values = json.loads((folder / "config.json").read_text())
    present = {key: values[key] for key in KEYS if values.get(key) is not None}
    config = ChameleonConfig(**present, vocabulary_map={"<image>": 0})  # no images go through
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(config)
    modules = torch.nn.ModuleDict({"lm_head": model.lm_head})
    for name in ("embed_tokens", "layers", "norm"):
        modules[name] = getattr(model.model, name)
    modules.to_empty(device="cpu").to(dtype).eval()
    load(modules["lm_head"], tensors, "lm_head.")
    for name in ("embed_tokens", "layers", "norm"):
        load(modules[name], tensors, f"model.{name}.")
    theta = values.get("rope_theta", 10000.0)
    for module in model.model.modules():  # a table, not a weight: made anew off the meta device
        if getattr(module, "inv_freq", None) is not None:
            half = len(module.inv_freq)
            module.inv_freq = theta ** -(torch.arange(half, dtype=torch.float32) / half)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, TOKENS, np.int32)
    with torch.no_grad():
        result = {}

        def run():
            output = model.model(torch.tensor(ids[None].astype(np.int64)), use_cache=False)
            result["hidden"] = output.last_hidden_state

        states = outputs(modules["layers"], run)
        logits = model.lm_head(result["hidden"][:, -LAST:]).float()[0].numpy()
    hidden = result["hidden"].float()[0].numpy()
    return {
        "decoder/tokens": ids,
        "decoder/states": states,
        "decoder/hidden": hidden,
        "decoder/logits": logits,
    }


def siglip(folder: pathlib.Path, tensors: dict, prefix: str, dtype: torch.dtype) -> dict[str, np.ndarray]:
    values = json.loads((folder / "config.json").read_text())
    config = SiglipVisionConfig(**values.get("vision_config", values), vision_use_head=False)
    model = SiglipVisionModel(config).to(dtype).eval()
    load(model.vision_model, tensors, prefix)
    side = config.image_size
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    pixels = torch.tensor(image.transpose(2, 0, 1)[None] / 127.5 - 1, dtype=dtype)
    with torch.no_grad():
        result = {}
        states = outputs(model.vision_model.encoder.layers, lambda: result.update(model(pixels)))
    features = result["last_hidden_state"].float()[0].numpy()
    return {"siglip/image": image, "siglip/states": states, "siglip/features": features}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--siglip", type=pathlib.Path, help="folder with its config.json: its layers too")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    tensors = read(arguments.checkpoint)
    record = decoder(arguments.checkpoint, tensors, dtype)
    if arguments.siglip:
        if any(name.startswith("vit.") for name in tensors):
            record |= siglip(arguments.siglip, tensors, "vit.", dtype)
        else:
            record |= siglip(arguments.siglip, read(arguments.siglip), "vision_model.", dtype)
    np.savez(arguments.out, **record)
    print(f"{arguments.out}: {', '.join(record)}")


if __name__ == "__main__":
    main()
