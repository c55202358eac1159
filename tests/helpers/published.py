"""What the published code computes, restated in torch with `transformers`' modules, for any release.

As plainly as can be, and sharing nothing with the package: names of tokens, sequences, any-res, losses,
answers and guided drawing are its own. Import it after `pytest.importorskip` of torch and transformers.
"""

import dataclasses
import math

import numpy as np
import tokenizers
import torch
from PIL import Image
from transformers.models import chameleon, siglip

from tests.helpers.torch_weights import TorchDecoder, randomise

VOCABULARY, PROMPT = 400, "Generate an image according to the following prompt:\n"
WRITTEN, GUIDANCE = 8, 2.5


@dataclasses.dataclass(frozen=True)
class Release:
    """What one release is like."""

    anyres: bool
    heads: int
    kv_heads: int
    shards: int
    output_norm: bool
    dtype: str
    files: str  # "bin", "single" or "shards"
    vq_inside: bool  # the VQ encoder in the checkpoint, and no VQ-GAN folder
    codes: int
    side: int
    patch: int
    multipliers: tuple[int, ...]
    attend: tuple[int, ...] = ()
    tied: bool = False
    image: tuple[int, int] = (32, 32)  # height, width to draw
    theta: float = 10000.0


class Judge(torch.nn.Module):
    """The networks of a release, and what the published code does with them."""

    def __init__(self, release: Release):
        super().__init__()
        self.release = release
        torch.manual_seed(0)
        width = 8 * release.heads
        vq = {
            "base_channels": 32,
            "channel_multiplier": list(release.multipliers),
            "latent_channels": 6,
            "embed_dim": 5,
            "num_embeddings": release.codes,
            "num_res_blocks": 1,
            "resolution": 64,
            "attn_resolutions": list(release.attend) or None,
        }
        self.config = chameleon.ChameleonConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=release.heads,
            num_key_value_heads=release.kv_heads,
            model_parallel_size=release.shards,
            swin_norm=release.output_norm,
            rope_theta=release.theta,
            rms_norm_eps=3e-5,
            vocabulary_map={"<image>": VOCABULARY - 1},
            vq_config=vq,
            attn_implementation="eager",
        )
        self.decoder = chameleon.ChameleonForConditionalGeneration(self.config)
        vision = siglip.SiglipVisionConfig(
            hidden_size=18,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=release.side,
            patch_size=release.patch,
        )
        words = siglip.SiglipTextConfig(
            vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
        self.tower = siglip.SiglipModel(
            siglip.SiglipConfig(text_config=words.to_dict(), vision_config=vision.to_dict())
        )
        self.adapter = torch.nn.Sequential(
            torch.nn.Linear(18, width), torch.nn.GELU(), torch.nn.Linear(width, width)
        )
        self.pixels = TorchDecoder(self.config.vq_config)
        randomise(self)
        self._as_stored()
        self.eval()

    def _as_stored(self) -> None:
        """Values as the files' dtype holds them, and QK-norms with a row a shard."""
        dtype = getattr(torch, self.release.dtype)
        if self.release.tied:
            self.decoder.lm_head.weight = self.decoder.model.embed_tokens.weight
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if "q_norm" in name or "k_norm" in name:
                    each = len(weight) // self.release.shards
                    weight.copy_(weight[::each].repeat_interleave(each, 0))
                if not name.startswith("pixels.") and (self.release.vq_inside or ".vqmodel." not in name):
                    weight.copy_(weight.to(dtype))

    def checkpoint(self) -> dict:
        """The published names and dtype."""
        found = {}
        for name, weight in self.decoder.state_dict().items():
            if "q_norm" in name or "k_norm" in name:
                weight = weight[:: len(weight) // self.release.shards]
            tied = self.release.tied and name == "lm_head.weight"
            if not tied and (self.release.vq_inside or not name.startswith("model.vqmodel.")):
                found[name] = weight
        found |= {"vit." + name: weight for name, weight in self.tower.vision_model.state_dict().items()}
        found |= {"adapter." + name: weight for name, weight in self.adapter.state_dict().items()}
        dtype = getattr(torch, self.release.dtype)
        kept = {name: weight for name, weight in found.items() if weight.is_floating_point()}
        return {name: weight.to(dtype).contiguous().clone() for name, weight in kept.items()}

    def vqgan(self) -> dict:
        parts = self.decoder.model.vqmodel.state_dict()
        return parts | {"decoder." + name: weight for name, weight in self.pixels.state_dict().items()}

    def gradients(self) -> dict:
        """By published name, after backward(): a QK-norm's row a shard is the sum of its heads'."""
        found = {}
        for name, weight in self.named_parameters():
            name = name.removeprefix("decoder.").replace("tower.vision_model.", "vit.")
            if weight.grad is not None:
                gradient = weight.grad
                if "q_norm" in name or "k_norm" in name:
                    gradient = gradient.reshape(self.release.shards, -1, gradient.shape[-1]).sum(1)
                found[name] = gradient.numpy()
        return found

    # What the published code computes

    def codes(self, image: np.ndarray) -> np.ndarray:
        """int[h, w] of uint8[H, W, 3]."""
        pixels = torch.tensor(image.transpose(2, 0, 1)[None] / 127.5 - 1, dtype=torch.float32)
        height, width = (side // 2 ** (len(self.release.multipliers) - 1) for side in image.shape[:2])
        return self.decoder.model.vqmodel.encode(pixels)[2].reshape(height, width).numpy()

    def features(self, image: Image.Image, new_line: torch.Tensor) -> torch.Tensor:
        """[n, D]: what stands after SEP."""
        side, patches = self.release.side, self.release.side // self.release.patch
        crops = [image.resize((side, side), Image.Resampling.BICUBIC)]
        w, h = image.size
        if self.release.anyres:
            grids = [(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]  # columns, rows

            def worth(grid):
                scale = min(grid[0] * side / w, grid[1] * side / h)
                effective = min(int(w * scale) * int(h * scale), w * h)
                return effective, effective - grid[0] * grid[1] * side * side

            columns, rows = max(grids, key=worth)  # the first of equals
            scale = min(columns * side / w, rows * side / h)
            if columns * side / w < rows * side / h:
                size = (columns * side, min(math.ceil(h * scale), rows * side))
            else:
                size = (min(math.ceil(w * scale), columns * side), rows * side)
            canvas = Image.new("RGB", (columns * side, rows * side))
            canvas.paste(
                image.resize(size, Image.Resampling.BICUBIC),
                ((columns * side - size[0]) // 2, (rows * side - size[1]) // 2),
            )
            for row in range(rows):
                for column in range(columns):
                    x, y = column * side, row * side
                    crops.append(canvas.crop((x, y, x + side, y + side)))
        pixels = np.stack([np.asarray(crop).transpose(2, 0, 1) for crop in crops]) / 127.5 - 1
        seen = self.tower.vision_model(torch.tensor(pixels, dtype=torch.float32)).last_hidden_state
        seen = self.adapter(seen)
        if not self.release.anyres:
            return seen[0]
        grid = seen[1:].reshape(rows, columns, patches, patches, -1).permute(0, 2, 1, 3, 4)
        grid = grid.reshape(rows * patches, columns * patches, -1)
        if w / h > columns / rows:
            cut = (rows * patches - int(h * (columns * patches / w))) // 2
            grid = grid[cut : rows * patches - cut]
        else:
            cut = (columns * patches - int(w * (rows * patches / h))) // 2
            grid = grid[:, cut : columns * patches - cut]
        ends = new_line.expand(len(grid), 1, -1)
        return torch.cat([seen[0], torch.cat([grid, ends], 1).flatten(0, 1)])

    def logits(self, embeds: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder.model(inputs_embeds=embeds[None], use_cache=False)[0]
        return torch.nn.functional.linear(hidden, self.decoder.lm_head.weight)[0]


class Reader:
    """Sequences as the published code makes them: ids by name."""

    def __init__(self, judge: Judge, path, codes: int):
        self.judge, self.backend = judge, tokenizers.Tokenizer.from_file(str(path))
        self.id = self.backend.token_to_id
        letters = "ABCDEFGHIJ"
        names = ["IMGIMG" + "".join(letters[int(digit)] for digit in str(k)) + "Z" for k in range(codes)]
        self.code_ids = np.array([self.id(name) for name in names])
        self.end = self.id("<reserved08706>")

    def embed(self, ids) -> torch.Tensor:
        return self.judge.decoder.model.embed_tokens(torch.tensor(np.array(ids, np.int64)))

    def head(self, height: int, width: int) -> list[int]:
        sizes = [self.id(f"<reserved{8800 + side // 32:05d}>") for side in (height, width)]
        return [self.id("<racm3:break>"), *sizes]

    def read(self, turns) -> tuple[torch.Tensor, list[int]]:
        """Embeddings and labels (-1: none) of [[part, ...], ...]; a part is text or an image."""
        embeds, labels = [self.embed([self.id("<s>")])], [-1]

        def add(ids, learn):
            embeds.append(self.embed(ids))
            labels.extend(ids if learn else [-1] * len(ids))

        for number, parts in enumerate(turns):
            learn = number % 2 == 1
            for part in parts:
                if isinstance(part, str):
                    add(self.backend.encode(part).ids, learn)
                    continue
                add(self.head(32, 32), learn)
                for row in self.judge.codes(np.asarray(part.crop(centre(part)))):
                    add([*self.code_ids[row].tolist(), self.id("<reserved08799>")], learn)
                add([self.id("<sentinel:0>")], True)
                found = self.judge.features(part, self.embed([self.id("<reserved08799>")]))
                embeds.append(found)
                labels.extend([-1] * len(found))
                add([self.id("<eoss>")], learn)
            add([self.end], learn)
        return torch.cat(embeds), labels

    def loss(self, turns) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy, and the mean square of logsumexp."""
        embeds, labels = self.read(turns)
        logits, following = self.judge.logits(embeds)[:-1].double(), torch.tensor(labels[1:])
        kept = following >= 0
        z = torch.logsumexp(logits[kept], -1).square().mean()
        return torch.nn.functional.cross_entropy(logits[kept], following[kept]), z

    def answer(self, parts) -> list[int]:
        embeds, written = self.read([parts])[0], []
        while len(written) < WRITTEN:
            best = int(self.judge.logits(embeds)[-1].argmax())
            if best == self.end:
                break
            written.append(best)
            embeds = torch.cat([embeds, self.embed([best])])
        return written

    def draw(self, text: str) -> tuple[list[int], np.ndarray]:
        """Guided at top-k 1: ids from begin to end of image, and uint8[H, W, 3]."""
        height, width = self.judge.release.image
        stride = 2 ** (len(self.judge.release.multipliers) - 1)
        head = self.head(height, width)
        asked = self.read([[PROMPT + text]])[0]
        both = [
            torch.cat([asked, self.embed([*self.backend.encode(" ").ids, *head])]),
            self.embed(head),
        ]
        drawn, codes = list(head), []
        for _ in range(height // stride):
            for column in range(width // stride + 1):
                if column == width // stride:
                    token = self.id("<reserved08799>")
                else:
                    with_prompt, without = (self.judge.logits(embeds)[-1] for embeds in both)
                    guided = (without + GUIDANCE * (with_prompt - without))[self.code_ids]
                    codes.append(int(guided[: self.judge.release.codes].argmax()))
                    token = int(self.code_ids[codes[-1]])
                drawn.append(token)
                both = [torch.cat([embeds, self.embed([token])]) for embeds in both]
        vq = self.judge.decoder.model.vqmodel
        grid = torch.tensor(codes).reshape(1, height // stride, width // stride)
        latents = vq.quantize.embedding(grid).permute(0, 3, 1, 2)
        pixels = self.judge.pixels(vq.post_quant_conv(latents))[0].permute(1, 2, 0)
        return [*drawn, self.id("<eoss>")], ((pixels.clamp(-1, 1) + 1) / 2 * 255).byte().numpy()


def centre(image: Image.Image) -> tuple[int, int, int, int]:
    """The box of the discrete crop of an image whose shorter side it fits already."""
    left, top = (image.width - 32) // 2, (image.height - 32) // 2
    return left, top, left + 32, top + 32
