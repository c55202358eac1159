"""Images and answers while training: what is asked, what is written (by several processes: test_mesh)."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from tests.helpers.host_data import DRAWING, QUESTION, TEXT, data_config, write_data
from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax.config import Config, SourceConfig, TrainConfig
from unitoken_jax.data.loader import Validation
from unitoken_jax.sequence.build import TEXT_TO_IMAGE_INSTRUCTION
from unitoken_jax.sequence.image import ImageError
from unitoken_jax.train.logs.samples import Samples


def config_of(**train):
    return Config(model=CONFIG, train=TrainConfig(sample_every=1, dtype="float32", **train))


def test_prompts_and_questions_are_the_first_of_each_validation_set(tmp_path):
    sets = [
        write_data(tmp_path, [QUESTION, DRAWING, DRAWING], "a.jsonl"),
        write_data(tmp_path, [TEXT, DRAWING, QUESTION], "b.jsonl"),
    ]
    data = data_config(sets[0], validation=tuple(SourceConfig(str(path)) for path in sets))
    validation = Validation(data, CONFIG, tiny_tokenizer())
    samples = Samples(config_of(sample_count=2), tiny_tokenizer(), None, validation, tmp_path)
    assert samples.prompts == ["a red blue", "a red blue green"]
    assert [question.text for question in samples.questions] == [
        "<|image|>what is this ? red",
        "how many red ?",
    ]
    assert [question.truth for question in samples.questions] == ["red", "two"]


def test_a_file_of_questions_needs_no_answers(tmp_path):
    file = tmp_path / "asked.jsonl"
    asked = ("what is this ?", TEXT_TO_IMAGE_INSTRUCTION + "a red circle")
    lines = [{"conversations": [{"from": "human", "value": text}]} for text in asked]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = Samples(config_of(samples=str(file)), tiny_tokenizer(), None, None, tmp_path)
    assert [question.text for question in samples.questions] == [asked[0]]
    assert samples.prompts == [asked[1]]


def test_a_question_that_no_model_can_be_asked_is_known_before_the_first_step(tmp_path):
    """An image whose header is right and whose pixels are not passes measuring."""
    file = write_data(tmp_path, [QUESTION, QUESTION])
    image = tmp_path / "data.jsonl-0.png"
    image.write_bytes(image.read_bytes()[:60])
    data = data_config(file, validation=(SourceConfig(str(file)),), on_error="skip")
    validation = Validation(data, CONFIG, tiny_tokenizer())
    config = dataclasses.replace(config_of(), data=data)
    samples = Samples(config, tiny_tokenizer(), None, validation, tmp_path)
    assert [question.truth for question in samples.questions] == ["red blue"]
    for strict in (config_of(), dataclasses.replace(config_of(samples=str(file)), data=data)):
        with pytest.raises(ImageError, match=r"data\.jsonl:1: .*data\.jsonl-0\.png is damaged"):
            Samples(strict, tiny_tokenizer(), None, validation, tmp_path)


@pytest.mark.slow
def test_what_is_made_is_written_and_shown(tmp_path):
    file = write_data(tmp_path, [QUESTION, DRAWING])
    samples = Samples(config_of(samples=str(file)), tiny_tokenizer(), None, None, tmp_path)
    for _ in range(2):  # a step that is done again after a crash
        shown = samples.make(tiny_params(), 20)
    folder = tmp_path / "samples/step_0000020"
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "answers.md", "question_0_0.png"]
    with Image.open(folder / "0.png") as image:
        np.testing.assert_array_equal(np.asarray(image), shown["samples/0"])
    text = (folder / "answers.md").read_text()
    assert "![a red blue](0.png)" in text
    assert "asked: <|image|>what is this ? red" in text
    assert "in the data: red" in text
    assert [path.name for path in (tmp_path / "samples").iterdir()] == [folder.name]


def test_a_model_that_cannot_draw_answers(tmp_path):
    file = write_data(tmp_path, [TEXT, DRAWING])
    params = {name: value for name, value in tiny_params().items() if name != "vqgan"}
    samples = Samples(config_of(samples=str(file)), tiny_tokenizer(), None, None, tmp_path)
    assert samples.make(params, 1) == {}
    assert (tmp_path / "samples/step_0000001/answers.md").exists()


def test_nothing_to_ask_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"set data\.validation, or train\.samples"):
        Samples(config_of(), tiny_tokenizer(), None, None, tmp_path)
