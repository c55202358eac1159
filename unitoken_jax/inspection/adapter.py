"""What an adapter folder holds, for a person to read."""

import os

from unitoken_jax.checkpoint.adapter import load_adapter
from unitoken_jax.model.lora import PAIR


def describe_adapter(path: str | os.PathLike) -> list[str]:
    """Lines on the adapter folder `path`: its base, the settings of its pairs, what was trained whole, the
    step and scores, and every parameter with its shape. Raises as `load_adapter`."""
    adapter = load_adapter(path)
    lora, about = adapter.lora, adapter.manifest
    where = "" if adapter.find_base() else "; no model directory is there now: name a copy with --model"
    whole = sorted(name for name in adapter.params if not PAIR.search(name))
    lines = [
        f"{path}: an adapter, made {about.get('created', 'at an unknown time')}",
        f"base: {adapter.base}{where}",
        f"lora: rank {lora.rank}, alpha {lora.alpha:g}, scale {lora.scale:g}"
        + (" (rsLoRA)" if lora.rslora else "")
        + (f", dropout {lora.dropout:g} in training" if lora.dropout else ""),
        f"targets: {lora.targets}",
        f"trained whole: {', '.join(whole) or 'nothing'}",
    ]
    lines += [f"{name}: {about[name]}" for name in ("step", "scores") if name in about]
    lines += [f"{name:<60} {value.shape}" for name, value in sorted(adapter.params.items())]
    pairs = sum(value.size for name, value in adapter.params.items() if name not in whole)
    others = sum(adapter.params[name].size for name in whole)
    return [*lines, f"{pairs:,} parameters in pairs, {others:,} trained whole"]
