"""One optimizer step of a UniToken of 60M parameters: this project against PyTorch, on a CPU.

    python benchmarks/step_vs_torch.py                     # about three minutes on two idle cores
    python benchmarks/step_vs_torch.py --curves steps.png  # also against tokens, crops and layers
    python benchmarks/step_vs_torch.py --small             # seconds, to see that it runs

The peer is transformers' Chameleon decoder and SigLIP, eager with SDPA, and an adapter between them.
Both train every parameter in float32 with AdamW and clipping, on the same examples, from the same weights:

- padded: an example a row, padded to the longest, logits at every place, as the published code trains. Losses
  are equal.
- packed: our rows without their segment mask and logits at labels alone, so the same products in the same
  shapes. Losses are those of our rows with one segment each.

The sides take turns, so that whatever else the machine does falls on all; figures are medians. Where it does
much else, processor seconds of one thread say more: `OMP_NUM_THREADS=1 taskset -c 0 python ...` (several
threads burn them waiting for each other). Needs the extra "parity".
"""

import argparse
import copy
import dataclasses
import functools
import time

import jax
import numpy as np
import torch
import transformers
from generate_vs_transformers import decoder_params, make_peer

from unitoken_jax.config import (
    Config,
    DecoderConfig,
    ModelConfig,
    OptimizerConfig,
    ParameterGroup,
    SiglipConfig,
    TrainConfig,
)
from unitoken_jax.sequence import vocabulary
from unitoken_jax.train import state as states
from unitoken_jax.train.loss import targets
from unitoken_jax.train.optimizer import peak_rates, transformation
from unitoken_jax.train.step import make_model, make_train_step

RATE, CODES = 1e-4, 64
FULL = ModelConfig(
    siglip=SiglipConfig(image_size=112, width=384, depth=8, heads=6, mlp=1536),
    decoder=DecoderConfig(16384, 512, 8, heads=8, kv_heads=8, mlp=1376, qk_norm_shards=8, dropout=0.0),
)
SMALL = ModelConfig(
    siglip=SiglipConfig(image_size=28, width=32, depth=1, heads=2, mlp=48),
    decoder=DecoderConfig(256, 64, 2, heads=4, kv_heads=4, mlp=96, qk_norm_shards=4, dropout=0.0),
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A batch: rows of `tokens`, each with `crops`; the examples in a row have lengths 3 : 3 : 2."""

    rows: int = 2
    tokens: int = 512
    crops: int = 2


def make_batch(model: ModelConfig, shape: Shape) -> dict[str, np.ndarray]:
    """Packed rows: three examples of text in each, the first two beginning with the crops' features."""
    rng = np.random.default_rng(0)
    size = (shape.rows, shape.tokens)
    lengths = shape.tokens * np.array([3, 3, 2]) // 8
    segments = np.repeat(np.arange(1, 4), lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    soft = np.full(shape.tokens, -1)
    first, patches = shape.crops - shape.crops // 2, model.siglip.patches
    for start, crops, before in ((0, first, 0), (lengths[0], shape.crops - first, first)):
        if crops * patches + 8 > lengths[0]:
            raise ValueError(
                f"{shape.crops} crops of {patches} patches do not fit rows of {shape.tokens} tokens"
            )
        soft[start + 4 : start + 4 + crops * patches] = np.arange(crops * patches) + before * patches
    tokens = rng.integers(1, model.decoder.vocab_size, size)
    labels = np.where((soft < 0) & (rng.random(size) < 0.5), tokens, -1)
    side = model.siglip.image_size
    fields = {"segments": segments, "positions": positions, "image_feature_index": soft}
    fields = {name: np.tile(value, (shape.rows, 1)) for name, value in fields.items()}
    fields |= {"tokens": tokens, "labels": labels}
    batch = {name: value.astype(np.int32) for name, value in fields.items()}
    return batch | {"crops": rng.integers(0, 256, (shape.rows, shape.crops, side, side, 3), np.uint8)}


def one_segment(batch: dict) -> dict:
    """The same rows, each as a single example."""
    places = np.arange(batch["tokens"].shape[1], dtype=np.int32)
    return batch | {
        "segments": np.ones_like(batch["segments"]),
        "positions": np.tile(places, (len(batch["tokens"]), 1)),
    }


def padded(batch: dict, patches: int) -> dict:
    """An example a row, and the `image_feature_index` of each in the features of all the batch's crops."""
    longest = max(np.bincount(row)[1:].max() for row in batch["segments"])
    names = ("tokens", "segments", "positions", "labels", "image_feature_index")
    first = np.arange(len(batch["crops"]))[:, None] * batch["crops"].shape[1] * patches
    batch = batch | {
        "image_feature_index": np.where(
            batch["image_feature_index"] < 0, -1, batch["image_feature_index"] + first
        )
    }
    rows = [(row, number) for row, own in enumerate(batch["segments"]) for number in np.unique(own)]
    separate = {name: np.full((len(rows), longest), -1 if name in names[3:] else 0) for name in names}
    for i, (row, number) in enumerate(rows):
        own = batch["segments"][row] == number
        for name in names:
            separate[name][i, : own.sum()] = batch[name][row, own]
    return separate


class Torch(torch.nn.Module):
    """The peer. Its loss is the mean over labels of cross-entropy + 1e-5 logsumexp^2, as in training here."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        c, d = model.siglip, model.decoder
        self.decoder = make_peer(d).train()
        self.decoder.model.vqmodel = None  # not part of a step
        self.siglip = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(
                hidden_size=c.width,
                intermediate_size=c.mlp,
                num_hidden_layers=c.depth,
                num_attention_heads=c.heads,
                image_size=c.image_size,
                patch_size=c.patch_size,
                vision_use_head=False,
            )
        )
        self.adapter = torch.nn.Sequential(
            torch.nn.Linear(c.width, d.width), torch.nn.GELU(), torch.nn.Linear(d.width, d.width)
        )

    def forward(self, batch: dict, every_place: bool):
        """(loss to train on, its mean cross-entropy) of a batch as `tensors` makes it."""
        text, head = self.decoder.model, self.decoder.lm_head
        x = text.embed_tokens(batch["tokens"])
        if len(batch["crops"]):
            pixels = batch["crops"].permute(0, 3, 1, 2).float() / 127.5 - 1
            features = self.adapter(self.siglip(pixels).last_hidden_state).flatten(0, 1)
            x = x.index_put((batch["soft"],), features[batch["image_feature_index"]])
        hidden = text(inputs_embeds=x, attention_mask=batch["mask"], use_cache=False).last_hidden_state
        learnt = batch["wanted"] >= 0
        logits = head(hidden)[learnt] if every_place else head(hidden[learnt])
        normaliser = torch.logsumexp(logits, -1)
        losses = normaliser - logits.gather(-1, batch["wanted"][learnt][:, None])[:, 0]
        return (losses + 1e-5 * normaliser**2).mean(), losses.mean().detach()


def tensors(batch: dict, crops: np.ndarray) -> dict:
    """What `Torch` takes of a batch whose `image_feature_index` counts in the features of all `crops`."""
    next_labels = np.asarray(targets(batch["labels"], batch["segments"]))
    soft = batch["image_feature_index"] >= 0
    whole = (batch["segments"] > 0).all()
    return {
        "tokens": torch.tensor(batch["tokens"], dtype=torch.int64),
        "wanted": torch.tensor(next_labels, dtype=torch.int64),
        "soft": torch.tensor(soft),
        "image_feature_index": torch.tensor(batch["image_feature_index"][soft], dtype=torch.int64),
        "mask": None if whole else torch.tensor(batch["segments"] > 0),
        "crops": torch.tensor(crops.reshape(-1, *crops.shape[2:])),
    }


def params_of(peer: Torch, model: ModelConfig) -> dict:
    """The peer's weights as ours."""
    weights = {name: leaf.detach().numpy() for name, leaf in peer.named_parameters()}
    names = {"attention_norm": "layer_norm1", "mlp_norm": "layer_norm2", "up": "mlp.fc1", "down": "mlp.fc2"}
    names |= {name: f"self_attn.{name}_proj" for name in "qkv"} | {"o": "self_attn.out_proj"}

    def leaves(prefix: str) -> dict:
        weight, bias = weights[f"{prefix}.weight"], weights[f"{prefix}.bias"]
        return {"scale": weight, "bias": bias} if weight.ndim == 1 else {"kernel": weight.T, "bias": bias}

    tower, depth = "siglip.vision_model", model.siglip.depth
    layers = [
        {ours: leaves(f"{tower}.encoder.layers.{i}.{theirs}") for ours, theirs in names.items()}
        for i in range(depth)
    ]
    patch = weights[f"{tower}.embeddings.patch_embedding.weight"]
    siglip = {
        "patch_embed": {
            "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, model.siglip.width),
            "bias": weights[f"{tower}.embeddings.patch_embedding.bias"],
        },
        "position_embed": {"embedding": weights[f"{tower}.embeddings.position_embedding.weight"]},
        "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
        "norm": leaves(f"{tower}.post_layernorm"),
    }
    adapter = {"up": leaves("adapter.0"), "down": leaves("adapter.2")}
    return {"siglip": siglip, "adapter": adapter, "decoder": decoder_params(peer.decoder, model.decoder)}


class Ours:
    """A training state and its compiled step."""

    def __init__(self, model: ModelConfig, params: dict):
        config = Config(
            model=model,
            optimizer=OptimizerConfig(groups=(ParameterGroup(".", RATE),), warmup_fraction=0.0),
            train=TrainConfig(steps=10**9, dtype="float32", remat="none", scan_layers=False, loss_chunk=128),
        )
        rates = peak_rates(states.flatten(params), config.optimizer.groups)
        names = vocabulary.control_names(CODES)
        ids = vocabulary.Vocabulary.from_names({name: i for i, name in enumerate(names)})
        self._start = lambda: states.create(params, rates, transformation(config.optimizer))
        self._step = make_train_step(make_model(config, rates), config, rates, ids)
        self.again()

    def again(self) -> None:
        self._state = self._start()

    def step(self, batch: dict) -> float:
        """Its loss, once the state after it is there."""
        self._state, metrics = self._step(self._state, batch)
        jax.block_until_ready(self._state.params)
        return float(metrics["loss"])


class Theirs:
    """A copy of the peer with an optimizer. The fused AdamW is the fastest that torch has."""

    def __init__(self, peer: Torch, every_place: bool):
        self._model, self._every_place = copy.deepcopy(peer), every_place
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
        )

    def step(self, batch: dict) -> float:
        self._optimizer.zero_grad()
        loss, shown = self._model(batch, self._every_place)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 4.0)
        self._optimizer.step()
        return float(shown)


def compare(model: ModelConfig, shape: Shape, repeats: int, steps: int = 2) -> dict[str, np.ndarray]:
    """Medians of (seconds, processor seconds) a step of "ours", "padded", "packed"; losses must agree."""
    batch = make_batch(model, shape)
    alone = padded(batch, model.siglip.patches)
    rows = padded(one_segment(batch), model.siglip.patches)
    peer = Torch(model)
    ours = Ours(model, params_of(peer, model))
    sides = {"padded": (Theirs(peer, True), tensors(alone, batch["crops"]))}
    sides["packed"] = Theirs(peer, False), tensors(rows, batch["crops"])
    for (name, (side, side_batch)), our_batch in zip(sides.items(), (batch, one_segment(batch))):
        ours.again()
        losses = np.array([(ours.step(our_batch), side.step(side_batch)) for _ in range(steps)])
        apart = np.abs(losses[:, 0] / losses[:, 1] - 1).max()
        print(f"losses of {steps} steps, ours and {name}: {losses.round(5).tolist()}", flush=True)
        if apart > 1e-4:
            raise AssertionError(f"losses of ours and {name} differ by {apart:.1e}")
    runs = {"ours": lambda: ours.step(batch)}
    runs |= {name: functools.partial(side.step, side_batch) for name, (side, side_batch) in sides.items()}
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter(), time.process_time()
            run()
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: np.median(times, axis=0) for name, times in seconds.items()}


def curves(model: ModelConfig, path: str, repeats: int) -> None:
    """Draws processor seconds a step against tokens a row, crops a row and layers of the decoder."""
    from matplotlib.figure import Figure

    base = Shape()
    sweeps = {
        "tokens a row": [(n, model, dataclasses.replace(base, tokens=n)) for n in (256, 512, 1024)],
        "crops a row": [(n, model, dataclasses.replace(base, crops=n)) for n in (0, 2, 4)],
        "decoder layers": [
            (value, dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, depth=value)), base)
            for value in (2, 4, 8)
        ],
    }
    figure, results = Figure(figsize=(9, 3), layout="constrained"), {}
    for axes, (axis_name, points) in zip(figure.subplots(1, 3, sharey=True), sweeps.items()):
        for point in points:
            if point[1:] not in results:
                results[point[1:]] = compare(*point[1:], repeats, steps=1)
                print(axis_name, point[0], results[point[1:]], flush=True)
        for name in ("ours", "padded", "packed"):
            label = "unitoken_jax" if name == "ours" else f"PyTorch, {name}"
            axes.plot(
                [point[0] for point in points], [results[p[1:]][name][1] for p in points], "o-", label=label
            )
        axes.set(xlabel=axis_name, ylim=0)
    figure.axes[0].set_ylabel("processor seconds a step")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each side (default 9)")
    parser.add_argument("--curves", metavar="PNG", help="also draw the cost against tokens, crops and layers")
    arguments = parser.parse_args(argv)
    model = SMALL if arguments.small else FULL
    shape = Shape(tokens=64, crops=2) if arguments.small else Shape()
    count = sum(weight.numel() for weight in Torch(model).parameters())
    print(
        f"{count / 1e6:.1f}M parameters, {shape}, float32; jax {jax.__version__}, torch {torch.__version__} "
        f"({torch.get_num_threads()} threads), transformers {transformers.__version__}"
    )
    seconds = compare(model, shape, arguments.repeats)
    for name, (wall, cpu) in seconds.items():
        ratios = ", ".join(f"{ratio:.2f}" for ratio in seconds[name] / seconds["ours"])
        print(f"{name}: {wall:.3f} s a step, {cpu:.3f} processor seconds; of ours {ratios}", flush=True)
    if arguments.curves:
        curves(model, arguments.curves, max(arguments.repeats // 2, 1))


if __name__ == "__main__":
    main()
