"""A training step of LoRA pairs against one of stage II, which trains everything: time, FLOPs and memory.

    python benchmarks/lora_step.py            # about a minute on two idle cores
    python benchmarks/lora_step.py --small    # seconds, to see that it runs

Same UniToken of 57M parameters, same batch of packed rows, float32, AdamW, rank 16 on all kernels of the
decoder. The sides take turns, so that whatever else the machine does falls on both; figures are medians of
wall-clock and of processor seconds. FLOPs and memory are the compiler's.
"""

import argparse
import json
import time
from typing import NamedTuple

import jax
import numpy as np

from unitoken_jax.config import (
    Config,
    DecoderConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ParameterGroup,
    SiglipConfig,
    TrainConfig,
)
from unitoken_jax.model.init import init_lora, init_params
from unitoken_jax.model.lora import merge_trees
from unitoken_jax.sequence.vocabulary import Vocabulary, control_names
from unitoken_jax.train.optimizer import peak_rates, transformation
from unitoken_jax.train.state import State, create, flatten
from unitoken_jax.train.step import TrainStep, make_model, make_train_step

FULL = ModelConfig(
    siglip=SiglipConfig(image_size=112, width=384, depth=8, heads=6, mlp=1536),
    decoder=DecoderConfig(16384, 512, 8, heads=8, kv_heads=8, mlp=1376, dropout=0.0),
)
SMALL = ModelConfig(
    siglip=SiglipConfig(image_size=28, width=32, depth=1, heads=2, mlp=48),
    decoder=DecoderConfig(9000, 64, 2, heads=4, kv_heads=4, mlp=96, dropout=0.0),
)
GROUPS = {
    "stage II": (ParameterGroup("^(siglip|adapter|decoder)/", 1e-5),),
    "LoRA": (ParameterGroup("lora_[ab]$", 2e-4),),
}


class Side(NamedTuple):
    """One way to train: its compiled step, and the state that it has come to."""

    step: TrainStep
    state: State


def make_batch(model: ModelConfig, rows: int, tokens: int) -> dict[str, np.ndarray]:
    """Two examples a row, each beginning with a crop's features; half of the other tokens are learnt."""
    rng = np.random.default_rng(0)
    half, patches, side = tokens // 2, model.siglip.patches, model.siglip.image_size
    index = np.full(tokens, -1)
    for number in range(2):
        index[number * half + 2 : number * half + 2 + patches] = np.arange(patches) + number * patches
    ids = rng.integers(3, 200, (rows, tokens))
    labels = np.where((index < 0) & (rng.random((rows, tokens)) < 0.5), ids, -1)
    fields = {
        "tokens": ids,
        "labels": labels,
        "segments": np.repeat([[1] * half + [2] * half], rows, 0),
        "positions": np.repeat([[*range(half), *range(half)]], rows, 0),
        "image_feature_index": np.repeat([index], rows, 0),
    }
    batch = {name: value.astype(np.int32) for name, value in fields.items()}
    return batch | {"crops": rng.integers(0, 256, (rows, 2, side, side, 3), np.uint8)}


def make_side(model: ModelConfig, name: str, batch: dict) -> tuple[Side, dict[str, float]]:
    """The compiled step of a side, and what its compiler says of it."""
    lora = LoraConfig(rank=16) if name == "LoRA" else LoraConfig()
    config = Config(
        model=model,
        lora=lora,
        optimizer=OptimizerConfig(groups=GROUPS[name]),
        train=TrainConfig(dtype="float32", remat="none", scan_layers=False),
    )
    params = init_params(model)
    params.pop("vqgan")
    if lora.rank:
        params = merge_trees(params, init_lora(model, lora))
    rates = peak_rates(flatten(params), config.optimizer.groups)
    names = control_names(model.vq.codes)
    vocabulary = Vocabulary.from_names({name: i for i, name in enumerate(names)})
    step = make_train_step(make_model(config, rates), config, rates, vocabulary)
    state = create(params, rates, transformation(config.optimizer))
    compiled = step.lower(state, batch).compile()
    memory = compiled.memory_analysis()
    about = {
        "flops": compiled.cost_analysis()["flops"],
        "trained parameters": float(sum(value.size for value in state.params.values())),
        "state bytes": float(sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))),
        "temporary bytes": float(memory.temp_size_in_bytes),
    }
    return Side(step, state), about


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args(argv)
    model = SMALL if arguments.small else FULL
    rows, tokens = (2, 64) if arguments.small else (2, 512)
    batch = make_batch(model, rows, tokens)
    sides, results = {}, {}
    for name in GROUPS:
        sides[name], results[name] = make_side(model, name, batch)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in GROUPS}
    for _ in range(arguments.rounds + 1):
        for name, side in sides.items():
            wall, processor = time.perf_counter(), time.process_time()
            state, metrics = side.step(side.state, batch)
            float(metrics["loss"])
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
            sides[name] = side._replace(state=state)
    for name, pairs in times.items():
        wall, processor = np.median(pairs[1:], axis=0)  # the first compiles
        results[name] |= {"seconds": float(wall), "processor seconds": float(processor)}
        results[name]["tokens a second"] = rows * tokens / float(wall)
    for key in results["LoRA"]:
        values = [results[name][key] for name in GROUPS]
        print(f"{key:<20}" + "".join(f"{name} {value:.4g}   " for name, value in zip(GROUPS, values)), end="")
        print(f"stage II / LoRA {values[0] / values[1]:.2f}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    return results


if __name__ == "__main__":
    main()
