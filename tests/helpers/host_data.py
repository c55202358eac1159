"""Conversation files with images on disk, for tests of the data pipeline."""

import dataclasses
import io
import json
import pathlib
import tarfile
from collections.abc import Iterable

import numpy as np

from tests.helpers.tiny_model import CONFIG, noise
from unitoken_jax.config import DataConfig, ModelConfig, SourceConfig
from unitoken_jax.data.codes import codes_needed
from unitoken_jax.sequence.conversation import ImageFile
from unitoken_jax.sequence.conversation_file import read_conversations

QUESTION, DRAWING, TEXT = "question", "drawing", "text"


def record(kind: str, number: int, image: str | None = None) -> dict:
    """One conversation in the public format; texts grow with `number`."""
    words = " ".join(["red", "blue", "green", "circle", "square"][: 1 + number % 5])
    turns = {
        QUESTION: (f"<|image|>what is this ? {words}", words),
        DRAWING: (f"a {words}", "<|image|>"),
        TEXT: (f"how many {words} ?", "two"),
    }[kind]
    made = {"conversations": [{"from": who, "value": text} for who, text in zip(("human", "gpt"), turns)]}
    return made | ({"image": image} if kind != TEXT else {})


def write_data(folder: pathlib.Path, kinds: list[str], name: str = "data.jsonl") -> pathlib.Path:
    """A JSONL file of conversations of these kinds, each with its own image."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, kind in enumerate(kinds):
        image = f"{name}-{number}.png"
        if kind != TEXT:
            noise(number, width=16 + 8 * (number % 3)).save(folder / image)
        lines.append(json.dumps(record(kind, number, image)))
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def write_array_record(path: pathlib.Path, items: list[bytes]) -> None:
    """An ArrayRecord file of these records."""
    from unitoken_jax.data.readers import array_record_module

    writer = array_record_module().ArrayRecordWriter(str(path), "group_size:1")
    for item in items:
        writer.write(item)
    writer.close()


def write_tfds(folder: pathlib.Path, count: int) -> pathlib.Path:
    """A prepared TFDS data set of `count` questions about one image; its folder."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"question": tfds.features.Text(), "answer": tfds.features.Text(), "image": tfds.features.Image()}
    )
    image = folder / "p.png"
    noise(3, 24, 16).save(image)
    serialize = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    items = [
        serialize.serialize_example(
            features.encode_example({"question": f"q{i}", "answer": f"a{i}", "image": image})
        )
        for i in range(count)
    ]
    folder = folder / "vqa" / "1.0.0"
    folder.mkdir(parents=True)
    write_array_record(folder / "vqa-train.array_record-00000-of-00001", items)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="vqa", split="train", filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(name="train", shard_lengths=[count], num_bytes=0, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=[split], check_data=False
    )
    return folder


def tfds_conversation(example: dict) -> dict:
    """The mapping of `write_tfds`'s examples."""
    turns = [{"from": "human", "value": "<image>" + example["question"].decode()}]
    turns.append({"from": "gpt", "value": example["answer"].decode()})
    return {"conversations": turns, "image": example["image"]}


def data_config(*paths: pathlib.Path, **changes) -> DataConfig:
    """Small rows over these files."""
    sources = tuple(SourceConfig(str(path)) for path in paths)
    base = DataConfig(sources=sources, row_length=96, row_crops=8, row_images=4, rows=4)
    return dataclasses.replace(base, **changes)


def with_sequence(**changes) -> ModelConfig:
    """The tiny model's config with these changes to its SequenceConfig."""
    return dataclasses.replace(CONFIG, sequence=dataclasses.replace(CONFIG.sequence, **changes))


def images_with_codes(data: pathlib.Path, config: ModelConfig = CONFIG) -> list[ImageFile]:
    """The distinct images of a conversation file that have discrete tokens, in order of first appearance."""
    images = {
        image.name: image
        for conversation in read_conversations(data)
        for image in codes_needed(conversation, config)
    }
    return list(images.values())


def write_tar(path: pathlib.Path, numbers: Iterable[int]) -> pathlib.Path:
    """A tar shard of images: number n is 30 + n px wide, and called as `tar_name` says."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            data = io.BytesIO()
            noise(number, 30 + number, 20).save(data, "PNG")
            info = tarfile.TarInfo(f"./{tar_name(number)}" if number % 2 else tar_name(number))
            info.size = len(data.getvalue())
            data.seek(0)
            tar.addfile(info, data)
    return path


def tar_name(number: int) -> str:
    """An image's name in `write_tar`'s shard; every other one is longer than a tar header's field."""
    return f"{'d' * 120}/{number}.png" if number % 2 else f"{number}.png"


def batches_equal(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
