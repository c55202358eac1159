"""The stock `openai` client: every call of the API, as users of it write them."""

import base64
import io

import openai
import pytest
from PIL import Image

from tests.helpers.stand_in_engine import colour
from tests.serve.conftest import running


@pytest.fixture(scope="module")
def api(served):
    with openai.OpenAI(base_url=served[1] + "/v1", api_key="none", max_retries=0) as api:
        yield api


def png(seed=1, index=1) -> bytes:
    file = io.BytesIO()
    colour(seed, index).save(file, "PNG")
    return file.getvalue()


def data_url(**which) -> str:
    return "data:image/png;base64," + base64.b64encode(png(**which)).decode()


def image_of(b64_json: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def question(*parts):
    return [{"role": "user", "content": list(parts)}]


TEXT = {"type": "text", "text": "what is this ?"}


def test_models_are_listed_and_found(api):
    (model,) = api.models.list().data
    assert model.id == "stand-in" == api.models.retrieve("stand-in").id
    with pytest.raises(openai.NotFoundError, match="no model"):
        api.models.retrieve("gpt")


def test_a_question_is_answered(api):
    answer = api.chat.completions.create(model="stand-in", messages=question(TEXT), seed=7)
    (choice,) = answer.choices
    assert choice.message.content == "seed 7 index 0: what is this ?"
    assert choice.finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        4,
        5,
        9,
    )


def test_several_choices_have_indices_of_their_own(api):
    answer = api.chat.completions.create(
        model="stand-in", messages=question(TEXT), n=3, max_tokens=1, temperature=0.5
    )
    assert [choice.message.content for choice in answer.choices] == [f"seed 0 index {i}:" for i in range(3)]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage.completion_tokens == 3


def test_an_answer_is_streamed_with_its_usage(api):
    chunks = list(
        api.chat.completions.create(
            model="stand-in",
            messages=question(TEXT),
            n=2,
            stream=True,
            stream_options={"include_usage": True},
            stop=["?"],
        )
    )
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {i: f"seed 0 index {i}: what is this" for i in range(2)}
    assert len([chunk for chunk in chunks if chunk.choices]) == 2 * (1 + 4 + 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8


def test_images_of_a_question_reach_the_engine(api, served):
    parts = [{"type": "image_url", "image_url": {"url": data_url(index=i), "detail": "auto"}} for i in (1, 2)]
    api.chat.completions.create(model="stand-in", messages=question(*parts, TEXT))
    turn = served[0].requests[-1].conversation.turns[-1]
    assert [part.path.data for part in turn.parts[:2]] == [png(index=1), png(index=2)]


def test_a_drawn_answer_can_be_sent_back_as_it_came(served, api, monkeypatch):
    from tests.helpers import stand_in_engine

    events = stand_in_engine._text_events
    monkeypatch.setattr(
        stand_in_engine,
        "_text_events",
        lambda request: events(stand_in_engine.dataclasses.replace(request, draws=request.max_images > 0)),
    )
    message = api.chat.completions.create(model="stand-in", messages=question(TEXT)).choices[0].message
    (image,) = message.images
    assert image["offset"] == 0
    assert image_of(image["image_url"]["url"].partition(",")[2]).getpixel((0, 0)) == (0, 0, 128)
    more = [*question(TEXT), message, {"role": "user", "content": "and now ?"}]
    api.chat.completions.create(model="stand-in", messages=more, max_completion_tokens=3)
    answer = served[0].requests[-1].conversation.turns[1]
    assert answer.role == "answer"
    assert answer.parts[0].path.data == base64.b64decode(image["image_url"]["url"].partition(",")[2])
    assert answer.parts[1] == message.content
    chunks = api.chat.completions.create(model="stand-in", messages=question(TEXT), stream=True)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert len([delta.images for delta in deltas if hasattr(delta, "images")]) == 1


def test_images_are_drawn(api, served):
    response = api.images.generate(
        prompt="a red circle",
        n=2,
        size="24x16",
        response_format="b64_json",
        extra_body={"seed": 9, "guidance_scale": 2.5, "top_k": 5, "temperature": 0.5},
    )
    images = [image_of(one.b64_json) for one in response.data]
    assert [image.getpixel((0, 0)) for image in images] == [(9, 0, 128), (9, 1, 128)]
    assert images[0].size == (24, 16)
    asked = served[0].requests[-1]
    assert (asked.settings.guidance, asked.settings.top_k, asked.settings.temperature) == (2.5, 5, 0.5)
    assert response.usage.output_tokens == 32
    url = api.images.generate(prompt="a red circle", response_format="url").data[0].url
    assert image_of(url.removeprefix("data:image/png;base64,")).size == (16, 16)


@pytest.mark.parametrize("partial", [0, 1, 3, 64])
def test_images_are_streamed_with_their_rows(api, partial):
    stream = api.images.generate(prompt="a red circle", n=2, stream=True, partial_images=partial)
    events = {0: [], 1: []}
    for event in stream:
        events[event.index].append((event.type, image_of(event.b64_json).size))
    rows = [("image_generation.partial_image", (16, height)) for height in (4, 8, 12, 16)]
    # The engine may be ahead of its reader: of the rows that wait, only the latest are shown.
    for got in events.values():
        assert got[-1] == ("image_generation.completed", (16, 16))
        assert set(got[:-1]) <= set(rows)
        assert min(1, partial) <= len(got[:-1]) <= partial


def test_an_image_is_changed(api, served):
    response = api.images.edit(
        image=[("a.png", png()), ("b.png", png(index=2))], prompt="make it blue", extra_body={"seed": 4}
    )
    assert image_of(response.data[0].b64_json).getpixel((0, 0)) == (4, 0, 128)
    parts = served[0].requests[-1].prompt.turns[0].parts
    assert [part.path.data for part in parts[:2]] == [png(), png(index=2)]
    assert parts[2] == "make it blue"
    stream = api.images.edit(image=png(), prompt="blue", stream=True, partial_images=1)
    assert [event.type for event in stream][-1] == "image_edit.completed"


def ask(api, **settings):
    api.chat.completions.create(**{"model": "stand-in", "messages": question(TEXT)} | settings)


@pytest.mark.parametrize(
    ("call", "param", "message"),
    [
        (lambda api: ask(api, model="gpt"), "model", "no model"),
        (lambda api: ask(api, top_p=0.5), "top_p", "alone"),
        (lambda api: ask(api, user="me"), "user", "not supported"),
        (lambda api: api.images.generate(prompt="x", size="1x1"), "size", "16x16"),
        (lambda api: api.images.generate(prompt="x", extra_body={"style": "y"}), "style", "unknown"),
        (lambda api: api.images.edit(image=b"no image", prompt="x"), "image[0]", "PNG"),
    ],
)
def test_what_is_refused_is_named(api, call, param, message):
    with pytest.raises(openai.APIStatusError, match=message) as error:
        call(api)
    assert error.value.param == param
    assert error.value.status_code == (404 if param == "model" else 400)


def test_a_key_is_asked_for_where_there_are_some():
    with running(keys=("secret-1", "secret-2")) as (_, address):
        for key in ("wrong", "secret", "secret-1", "secret-2"):
            with openai.OpenAI(base_url=address + "/v1", api_key=key, max_retries=0) as api:
                if key[-1].isdigit():
                    assert api.models.list().data
                    continue
                with pytest.raises(openai.AuthenticationError, match="key"):
                    api.models.list()
