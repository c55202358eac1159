"""What `unitoken generate`, `answer` and `chat` do with their options."""

import json
import pathlib
import sys
from collections.abc import Callable

from PIL import Image

from unitoken_jax.sequence.conversation import Conversation, parse_conversation, read_conversations
from unitoken_jax.unitoken import UniToken


def generate(find_model: Callable[[], str], arguments) -> None:
    files = image_files(arguments.out, arguments.number)
    progress = (lambda number, image: image.save(files[number])) if arguments.progress else None
    drawings = _load(find_model, arguments).draw(
        [arguments.prompt],
        number=arguments.number,
        seed=arguments.seed,
        guidance=arguments.guidance,
        top_k=arguments.top_k,
        temperature=arguments.temperature,
        size=arguments.size,
        speculate=arguments.speculate,
        progress=progress,
    )
    if arguments.timing:
        # A batch's drawings share one record.
        for timing in dict.fromkeys(drawing.timing for drawing in drawings):
            print(timing, file=sys.stderr)
    for file, drawing in zip(files, drawings):
        drawing.image.save(file)
        print(file)
    if arguments.save_tokens:
        rows = [drawing.tokens.tolist() for drawing in drawings]
        _save_tokens(
            arguments.save_tokens, {"prompt": arguments.prompt, "seed": arguments.seed, "tokens": rows}
        )


def image_files(out: str, number: int) -> list[pathlib.Path]:
    """Where the images go, checked before minutes are spent drawing them."""
    path = pathlib.Path(out)
    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--out {out}: no image format is known by the ending {path.suffix!r}; use .png")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: the folder {path.parent} does not exist")
    if number < 1:
        raise ValueError(f"--number is {number}; expected at least 1")
    return [path] if number == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(number)]


def answer(find_model: Callable[[], str], arguments) -> None:
    asked = question_of(arguments.question, arguments.image)
    if arguments.stream:
        if arguments.timing or arguments.save_tokens:
            raise ValueError("--stream prints the text alone: leave out --timing and --save-tokens")
        loaded = _load(find_model, arguments)
        for _, piece in loaded.answer([asked], max_tokens=arguments.max_tokens, stream=True):
            print(piece, end="", flush=True)
        print()
        return
    (reply,) = _load(find_model, arguments).reply([asked], max_tokens=arguments.max_tokens)
    print(reply.text)
    if arguments.timing:
        print(reply.timing, file=sys.stderr)
    if arguments.save_tokens:
        saved = {"question": arguments.question, "images": arguments.image, "tokens": reply.tokens.tolist()}
        _save_tokens(arguments.save_tokens, saved)


def chat(find_model: Callable[[], str], arguments) -> None:
    if (arguments.question is None) == (arguments.conversation is None):
        raise ValueError("give --question TEXT or --conversation FILE, one of them")
    if arguments.conversation and arguments.image:
        raise ValueError("--image belongs to --question; a --conversation names its own images")
    if arguments.conversation:
        asked = read_conversations(arguments.conversation, need_answers=False)
    else:
        asked = [question_of(arguments.question, arguments.image)]
    (out,) = image_files(arguments.out, 1)
    replies = _load(find_model, arguments).chat(
        asked,
        draws=arguments.draw,
        max_tokens=arguments.max_tokens,
        drawing={"guidance": arguments.guidance},
        seed=arguments.seed,
    )
    written = 0
    for reply in replies:
        for part in reply.parts:
            if not isinstance(part, str):
                file = out.with_stem(f"{out.stem}-{written}")
                part.image.save(file)
                part, written = file, written + 1
            print(part)
    if arguments.timing and replies:
        print(replies[0].timing, file=sys.stderr)


def question_of(text: str, images: list[str]) -> Conversation:
    """A conversation of one question: images where it says <|image|>, else before it."""
    marked = "<|image|>" in text or "<image>" in text
    value = text if marked else "<|image|>" * len(images) + text
    record = {"conversations": [{"from": "human", "value": value}], "image": images}
    return parse_conversation(record, "--question", pathlib.Path(), need_answers=False)


def _load(find_model: Callable[[], str], arguments) -> UniToken:
    return UniToken.load(find_model(), quantize=arguments.quantize)


def _save_tokens(path: str, values: dict) -> None:
    pathlib.Path(path).write_text(json.dumps(values) + "\n", encoding="utf-8")
