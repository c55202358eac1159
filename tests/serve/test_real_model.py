"""`unitoken serve` with the package's small model: a stock client gets the library's own answers."""

import base64
import io
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.serve.test_protocol import part, png, says, url
from unitoken_jax.unitoken import UniToken

pytestmark = pytest.mark.slow  # compiles and runs the small model, in two processes

TEXT_ALONE = {"max_images": 0}
QUESTION = "what is in the image?"
PROMPT = "a red circle above a blue 7"


@pytest.fixture(scope="module")
def address():
    command = [sys.executable, "-m", "unitoken_jax", "serve", "--port", "0", "--rows", "4"]
    limits = ["--max-prompt-tokens", "128", "--max-answer-tokens", "32"]
    process = subprocess.Popen([*command, *limits], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.communicate()[1])
    yield re.fullmatch(r"ready: (http://127.0.0.1:\d+)/\n", line)[1]
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.fixture(scope="module")
def api(address):
    import openai

    with openai.OpenAI(base_url=address + "/v1", api_key="none", max_retries=0) as api:
        yield api


@pytest.fixture(scope="module")
def model():
    return UniToken.load()


def pixels(b64_json: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))))


def test_answers_are_those_of_the_library(api, model):
    image = model.generate([PROMPT], seed=3)[0]
    message = says(part(url(png(image))), {"type": "text", "text": QUESTION})
    answer = api.chat.completions.create(model="unitoken-small", messages=[message], extra_body=TEXT_ALONE)
    assert [answer.choices[0].message.content] == model.answer([[image, QUESTION]])
    assert answer.choices[0].finish_reason == "stop"
    sampled = api.chat.completions.create(
        model="unitoken-small", messages=[message], n=2, seed=5, temperature=1, extra_body=TEXT_ALONE
    )
    expected = model.answer([[image, QUESTION]] * 2, seed=5, temperature=1.0)
    assert [choice.message.content for choice in sampled.choices] == expected


def test_images_are_those_of_the_library(api, model):
    settings = {"seed": 3, "guidance_scale": 3.0}
    drawn = api.images.generate(prompt=PROMPT, n=2, extra_body=settings).data
    expected = model.generate([PROMPT], number=2, seed=3, guidance=3.0)
    for got, image in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(pixels(got.b64_json), np.asarray(image))
    events = list(api.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body=settings))
    np.testing.assert_array_equal(pixels(events[-1].b64_json), np.asarray(expected[0]))


def test_an_edit_is_the_library_s(api, model):
    image = model.generate([PROMPT], seed=3)[0]
    (drawn,) = api.images.edit(image=png(image), prompt="make it blue", extra_body={"seed": 2}).data
    result = model.chat([[image, "make it blue"]], draws=True, max_images=1, seed=2)[0]
    np.testing.assert_array_equal(pixels(drawn.b64_json), np.asarray(result.images[0]))


def test_what_cannot_be_read_is_refused(api):
    import openai

    with pytest.raises(openai.BadRequestError, match="characters"):
        api.chat.completions.create(
            model="unitoken-small", messages=[{"role": "user", "content": "a red circle " * 200}]
        )
    with pytest.raises(openai.BadRequestError, match="damaged"):
        api.images.edit(image=png()[:-60], prompt="x")
