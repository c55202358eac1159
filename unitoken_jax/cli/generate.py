"""`unitoken generate`, `answer` and `chat`: their options, and what they do with them."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unitoken_jax.cli.options import (
    AddVerb,
    add_adapted_model_options,
    add_decoding_options,
    add_save_tokens_option,
    check_output_file,
    count,
    image_size,
    load_model,
    outline_model,
    positive,
    real_number,
    seed,
    whole_number,
)

if TYPE_CHECKING:
    from unitoken_jax.sequence.conversation import Conversation
    from unitoken_jax.unitoken import UniToken

_QUESTION = "<|image|> in it says where an image stands (default: images come first)"


def add_verbs(add_verb: AddVerb) -> None:
    """Adds this file's verbs to the command line."""
    generate = add_verb(
        "generate",
        run_generate,
        "draw images of a prompt",
        'unitoken generate --prompt "a red circle above a blue 7" --seed 1 \\\n      --out drawn.png',
        'unitoken generate --prompt "a green cross" --number 4 --out crosses.png',
    )
    add_adapted_model_options(generate)
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="what to draw")
    generate.add_argument(
        "--out",
        required=True,
        metavar="FILE.png",
        help="where the image goes; several go to FILE-0.png, FILE-1.png, ...",
    )
    generate.add_argument(
        "--seed", type=seed, default=0, help="the same seed draws the same image (default: 0)"
    )
    generate.add_argument(
        "--guidance",
        type=positive,
        help="how closely the prompt is followed; 1 is no guidance (default: the model's)",
    )
    generate.add_argument(
        "--top-k",
        type=count,
        metavar="K",
        help="choose among the K likeliest codes; 1 is greedy (default: the model's)",
    )
    generate.add_argument(
        "--temperature",
        type=real_number(0),
        metavar="T",
        help="how far from the likeliest codes to stray; 0 is greedy (default: the model's)",
    )
    generate.add_argument("--number", type=count, default=1, metavar="N", help="of images (default: 1)")
    generate.add_argument(
        "--size", type=image_size, metavar="WxH", help="width and height in pixels (default: as in training)"
    )
    generate.add_argument(
        "--speculate",
        type=whole_number(0),
        metavar="W",
        help="tokens read at once: the same image in fewer passes; 0 is plain (default: the model's)",
    )
    generate.add_argument(
        "--progress", action="store_true", help="write the image's rows so far while it draws"
    )
    add_save_tokens_option(generate)
    add_decoding_options(generate)

    answer = add_verb(
        "answer",
        run_answer,
        "answer a question, about an image or without one",
        'unitoken answer --image drawn.png --question "what is in the image?"',
        "unitoken answer --model MODEL --image a.png --image b.png \\\n"
        '      --question "what do <|image|> and <|image|> have in common?" --stream',
    )
    add_adapted_model_options(answer)
    _add_image_option(answer)
    answer.add_argument("--question", required=True, metavar="TEXT", help=_QUESTION)
    answer.add_argument(
        "--max-tokens", type=count, metavar="N", help="longest answer, in tokens (default: the model's)"
    )
    answer.add_argument("--stream", action="store_true", help="print the answer as it is written")
    add_save_tokens_option(answer)
    add_decoding_options(answer)

    chat = add_verb(
        "chat",
        run_chat,
        "answer with text and images: draw, or change an image",
        'unitoken chat --image drawn.png --question "make it blue" --draw --out new.png',
        "unitoken chat --model MODEL --conversation questions.jsonl --out reply.png",
    )
    add_adapted_model_options(chat)
    _add_image_option(chat)
    chat.add_argument("--question", metavar="TEXT", help=_QUESTION)
    chat.add_argument(
        "--conversation",
        metavar="FILE",
        help="in their place: conversations as for training (JSON, JSONL), which end with a question",
    )
    chat.add_argument("--draw", action="store_true", help="the answer begins with an image")
    chat.add_argument(
        "--out",
        required=True,
        metavar="FILE.png",
        help="its images go to FILE-0.png, FILE-1.png, ...",
    )
    chat.add_argument("--seed", type=seed, default=0, help="the same seed draws the same image (default: 0)")
    chat.add_argument(
        "--guidance", type=positive, help="how closely images follow the words (default: the model's)"
    )
    chat.add_argument(
        "--max-tokens",
        type=count,
        metavar="N",
        help="longest text in an answer, in tokens (default: the model's)",
    )
    add_decoding_options(chat)


def _add_image_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="what the question is about; may be given several times",
    )


def run_generate(arguments: argparse.Namespace) -> None:
    """`unitoken generate`: prints the files of the images."""
    from unitoken_jax.generate.image import plan_drawing

    files = image_files(arguments.out, arguments.number)
    names = ("number", "guidance", "top_k", "temperature", "size", "speculate")
    settings = {name: getattr(arguments, name) for name in names}
    prompts = [arguments.prompt]
    plan_drawing(outline_model(arguments), prompts, **settings)  # else after loading
    progress = (lambda number, image: image.save(files[number])) if arguments.progress else None
    model = load_model(arguments, quantize=arguments.quantize)
    drawings = model.image_results(prompts, seed=arguments.seed, progress=progress, **settings)
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
    """The files that `number` images go to, checked before minutes are spent drawing them.

    Raises ValueError for an ending that no image format has, OSError where no file can be written.
    """
    from PIL import Image

    check_output_file(out, "--out")
    path = pathlib.Path(out)
    formats = Image.registered_extensions()
    if formats.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--out {out}: no image format is known by the ending {path.suffix!r}; use .png")
    return [path] if number == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(number)]


def run_answer(arguments: argparse.Namespace) -> None:
    """`unitoken answer`: prints the answer."""
    if arguments.stream and (arguments.timing or arguments.save_tokens):
        raise ValueError("--stream prints the text alone: leave out --timing and --save-tokens")
    conversation = question_of(arguments.question, arguments.image)
    _check_questions(arguments, [conversation])
    model = load_model(arguments, quantize=arguments.quantize)
    if arguments.stream:
        for _, text in model.stream([conversation], max_tokens=arguments.max_tokens):
            print(text, end="", flush=True)
        print()
        return
    (reply,) = model.text_results([conversation], max_tokens=arguments.max_tokens)
    print(reply.text)
    if arguments.timing:
        print(reply.timing, file=sys.stderr)
    if arguments.save_tokens:
        saved = {"question": arguments.question, "images": arguments.image, "tokens": reply.tokens.tolist()}
        _save_tokens(arguments.save_tokens, saved)


def run_chat(arguments: argparse.Namespace) -> None:
    """`unitoken chat`: prints the text, and the files of the images."""
    from unitoken_jax.generate.image import resolve_image_sampling
    from unitoken_jax.sequence.conversation_file import read_conversations

    if (arguments.question is None) == (arguments.conversation is None):
        raise ValueError("give --question TEXT or --conversation FILE, one of them")
    if arguments.conversation and arguments.image:
        raise ValueError("--image belongs to --question; a --conversation names its own images")
    if arguments.conversation:
        conversations = read_conversations(arguments.conversation, need_answers=False)
    else:
        conversations = [question_of(arguments.question, arguments.image)]
    (out,) = image_files(arguments.out, 1)
    outline = _check_questions(arguments, conversations)
    resolve_image_sampling(outline.config, guidance=arguments.guidance)
    if arguments.draw:
        outline.require("vqgan/decoder", "drawing images")
    replies = load_model(arguments, quantize=arguments.quantize).chat(
        conversations,
        draws=arguments.draw,
        max_tokens=arguments.max_tokens,
        drawing={"guidance": arguments.guidance},
        seed=arguments.seed,
    )
    written = 0
    for reply in replies:
        for part in reply.parts:
            if isinstance(part, str):
                print(part)
                continue
            file = out.with_stem(f"{out.stem}-{written}")
            part.image.save(file)
            print(file)
            written += 1
    if arguments.timing and replies:
        print(replies[0].timing, file=sys.stderr)


def question_of(text: str, images: list[str]) -> "Conversation":
    """A conversation of one question, with its images where the text says <|image|>, else before the text."""
    from unitoken_jax.sequence.conversation import parse_conversation

    marked = "<|image|>" in text or "<image>" in text
    value = text if marked else "<|image|>" * len(images) + text
    record = {"conversations": [{"from": "human", "value": value}], "image": images}
    return parse_conversation(record, "--question", pathlib.Path(), need_answers=False)


def _check_questions(arguments: argparse.Namespace, conversations: "Sequence[Conversation]") -> "UniToken":
    """The model's outline. Raises RowError or ValueError for what no answer can be given to."""
    from unitoken_jax.generate import text

    outline = outline_model(arguments)
    text.check_settings(outline, arguments.max_tokens)
    text.build_examples(outline, conversations)
    return outline


def _save_tokens(path: str, values: dict) -> None:
    """Writes `values` to the JSON file of --save-tokens."""
    pathlib.Path(path).write_text(json.dumps(values) + "\n", encoding="utf-8")
