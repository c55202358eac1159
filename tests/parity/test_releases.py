"""Whole releases unlike the recorded one, made with torch and `transformers`: files in, the same numbers out.

The judge is tests/helpers/published.py.
"""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.helpers.tiny_model import CODES, noise, tiny_tokenizer

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install 'unitoken_jax[parity]'")
pytest.importorskip("transformers", reason="needs the parity extra")

import safetensors.torch  # noqa: E402

from tests.helpers.published import GUIDANCE, PROMPT, WRITTEN, Judge, Reader, Release  # noqa: E402
from tests.helpers.torch_names import disassemble  # noqa: E402
from unitoken_jax.checkpoint.model_directory import load_model  # noqa: E402
from unitoken_jax.config import DataConfig  # noqa: E402
from unitoken_jax.convert.from_torch import ConvertOptions, convert  # noqa: E402
from unitoken_jax.convert.to_torch import export  # noqa: E402
from unitoken_jax.data.packing import batch_of  # noqa: E402
from unitoken_jax.generate.vq import encode_images  # noqa: E402
from unitoken_jax.inspection.score import score  # noqa: E402
from unitoken_jax.model.decoder import stack_layers  # noqa: E402
from unitoken_jax.sequence.build import build_example  # noqa: E402
from unitoken_jax.sequence.conversation_file import read_conversations  # noqa: E402
from unitoken_jax.train.loss import cross_entropy  # noqa: E402
from unitoken_jax.unitoken import UniToken  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]
RELEASES = {
    "base, torch files": Release(
        False, 4, 2, 2, True, "float16", "bin", False, CODES - 3, 31, 7, (1, 1, 2, 2), (16,), image=(32, 64)
    ),
    "any-res, VQ encoder inside": Release(
        True, 8, 8, 4, False, "bfloat16", "single", True, CODES, 45, 14, (2, 1, 1), theta=500.0
    ),
    "any-res, tied": Release(
        True, 6, 3, 3, True, "float32", "shards", False, CODES, 24, 8, (1, 2, 2), tied=True
    ),
}


def shuffled_tokenizer(path) -> None:
    """The tiny tokenizer with every id, control ids too, at another place."""
    tiny_tokenizer().save(path)
    values = json.loads(path.read_text(encoding="utf-8"))
    order = np.random.default_rng(1).permutation(len(values["model"]["vocab"])).tolist()
    values["model"]["vocab"] = {name: order[k] for name, k in values["model"]["vocab"].items()}
    for token in values["added_tokens"]:
        token["id"] = values["model"]["vocab"][token["content"]]
    values["added_tokens"].sort(key=lambda token: token["id"])
    path.write_text(json.dumps(values), encoding="utf-8")


def write(judge: Judge, folder) -> dict:
    """The release's files; where `convert` finds them."""
    release, tensors = judge.release, judge.checkpoint()
    folder.mkdir()
    names = sorted(tensors)
    groups = [names] if release.files == "single" else [names[k::3] for k in range(3)]
    table = {}
    for k, group in enumerate(groups):
        part = {name: tensors[name] for name in group}
        name = {
            "single": "model.safetensors",
            "shards": f"model-{k + 1:05d}-of-00003.safetensors",
            "bin": f"pytorch_model-{k + 1:05d}-of-00003.bin",
        }[release.files]
        table |= dict.fromkeys(group, name)
        if release.files == "bin":
            torch.save(part, folder / name)
        else:
            safetensors.torch.save_file(part, folder / name, {"format": "pt"})
    index = {"bin": "pytorch_model.bin.index.json", "shards": "model.safetensors.index.json"}
    if release.files in index:
        values = {"metadata": {"total_size": 0}, "weight_map": table}
        (folder / index[release.files]).write_text(json.dumps(values))
    kind = "ChameleonXLLMXForConditionalGeneration" + "AnyRes" * release.anyres
    config = {**judge.config.to_dict(), "architectures": [kind], "tie_word_embeddings": release.tied}
    (folder / "config.json").write_text(json.dumps(config))
    shuffled_tokenizer(folder / "tokenizer.json")
    judge.tower.save_pretrained(folder / "SigLIP")
    found = {"siglip": folder / "SigLIP", "options": ConvertOptions(image_size=32, verify=True)}
    if not release.vq_inside:
        found["vqgan"] = write_vqgan(judge, folder / "vq")
    return found


def write_vqgan(judge: Judge, folder):
    folder.mkdir()
    vq = judge.config.vq_config
    ddconfig = {
        "ch": vq.base_channels,
        "ch_mult": vq.channel_multiplier,
        "num_res_blocks": vq.num_res_blocks,
        "attn_resolutions": vq.attn_resolutions or [],
        "resolution": vq.resolution,
        "z_channels": vq.latent_channels,
    }
    params = {"ddconfig": ddconfig, "embed_dim": vq.embed_dim, "n_embed": vq.num_embeddings}
    (folder / "vqgan.yaml").write_text(json.dumps({"model": {"params": params}}))  # JSON is YAML
    torch.save({"state_dict": judge.vqgan(), "epoch": 3}, folder / "vqgan.ckpt")
    return folder


def conversations(folder) -> list[list[list]]:
    """Turns by parts, also written as conversations.json."""
    images = [noise(k, width, height) for k, (width, height) in enumerate([(32, 32), (70, 32), (32, 41)])]
    turns = [
        [[images[0], "what is this ?"], ["a red circle"], ["how many ?"], ["two"]],
        [["left ", images[1], " of ", images[2]], ["the blue square"]],
        [[PROMPT + "a red circle"], [images[0]]],
    ]
    for k, image in enumerate(images):
        image.save(folder / f"{k}.png")
    records = []
    for each in turns:
        values = ["".join(part if isinstance(part, str) else "<|image|>" for part in parts) for parts in each]
        shown = [part for parts in each for part in parts if not isinstance(part, str)]
        speakers = [{"from": ("human", "gpt")[k % 2], "value": value} for k, value in enumerate(values)]
        records.append({"conversations": speakers, "image": [f"{images.index(x)}.png" for x in shown]})
    (folder / "conversations.json").write_text(json.dumps(records))
    return turns


@pytest.mark.parametrize("name", RELEASES)
def test_a_release(name, tmp_path):
    """Slow, since each release is written, converted, answered from, drawn from and written back."""
    judge = Judge(RELEASES[name])
    given = write(judge, tmp_path / "release")
    lines = convert(tmp_path / "release", out=tmp_path / "model", **given)
    assert any("cannot draw" in line for line in lines) is judge.release.vq_inside
    model = UniToken.load(tmp_path / "model", dtype="float32")
    reader, turns = Reader(judge, tmp_path / "release" / "tokenizer.json", CODES), conversations(tmp_path)
    with torch.no_grad():
        losses = [[part.item() for part in reader.loss(each)] for each in turns]
        found = [(line["loss"], line["z_loss"]) for line in score(model, tmp_path / "conversations.json")]
        np.testing.assert_allclose(found, losses, rtol=1e-5)
        replies = model.text_results([each[0] for each in turns[:2]], max_tokens=WRITTEN)
        assert [reply.tokens.tolist() for reply in replies] == [reader.answer(each[0]) for each in turns[:2]]
        if judge.release.vq_inside:
            with pytest.raises(ValueError, match="no vqgan/decoder parameters"):
                model.image_results(["a red circle"])
        else:
            tokens, image = reader.draw("a red circle")
            settings = {"guidance": GUIDANCE, "top_k": 1, "size": judge.release.image}
            (drawing,) = model.image_results([PROMPT + "a red circle"], **settings)
            assert drawing.tokens.tolist() == tokens
            difference = np.abs(np.asarray(drawing.image, np.int32) - image)
            assert difference.max() <= 1
            assert (difference == 0).mean() >= 0.999
    comes_back(judge, given, tmp_path)


def comes_back(judge: Judge, given: dict, folder) -> None:
    """Exported, every tensor is the release's own, and converted again every parameter is."""
    export(folder / "model", folder / "back", vqgan=not judge.release.vq_inside, shard_bytes=20_000)
    tensors = judge.checkpoint()
    if judge.release.tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    kept = {name for name in tensors if not name.startswith(("vit.head.", "model.vqmodel."))}
    found = {}
    for path in (folder / "back").glob("*.safetensors"):
        found |= safetensors.torch.load_file(path)
    assert found.keys() == kept
    assert all(torch.equal(found[name], tensors[name]) for name in kept)
    if not judge.release.vq_inside:
        given |= {"vqgan": folder / "back" / "chameleon" / "tokenizer"}
    convert(folder / "back", out=folder / "again", **given | {"siglip": folder / "back" / "SigLIP"})
    before, after = load_model(folder / "model"), load_model(folder / "again")
    if judge.release.vq_inside:
        before.params.pop("vqgan")
    assert after.config == before.config
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


def test_gradients(tmp_path):
    """Every parameter's, of a whole conversation's loss, through both images' features."""
    judge = Judge(RELEASES["base, torch files"])
    given = write(judge, tmp_path / "release")
    convert(tmp_path / "release", out=tmp_path / "model", **given)
    reader = Reader(judge, tmp_path / "release" / "tokenizer.json", CODES)
    loss, z = reader.loss(conversations(tmp_path)[1])
    (loss + 1e-5 * z).backward()
    expected = judge.gradients()

    model = UniToken.load(tmp_path / "model", dtype="float32")
    conversation = read_conversations(tmp_path / "conversations.json")[1]
    example = build_example(
        conversation, model.tokenizer, model.config, lambda crop: encode_images(model, crop[None])[0]
    )
    data = DataConfig(row_length=256, row_crops=len(example.crops), codes="offline")
    row = batch_of([[example]], data, model.config)

    @jax.jit
    def gradients(params):
        def total(params):
            hidden = model.module.apply({"params": params}, row, method="hidden")
            head = params["decoder"]["lm_head"]["kernel"]
            return cross_entropy(hidden, head, row["labels"], row["segments"], 1e-5, 1024)[0]

        return jax.grad(total)(params)

    found = flatten_dict(gradients(_stacked(model.network_params)), sep="/")
    pairs = [disassemble(path, np.asarray(gradient), {"siglip": "vit."}) for path, gradient in found.items()]
    found = {name: gradient for pair in pairs for name, gradient in pair}
    assert found.keys() <= expected.keys()
    for name, gradient in found.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(
            gradient, expected[name], rtol=0, atol=max(1e-4 * scale, 1e-7), err_msg=name
        )


def _stacked(params: dict) -> dict:
    """The network's parameters as training has them."""
    return params | {"decoder": stack_layers(params["decoder"])}
