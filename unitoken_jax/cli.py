"""`unitoken <verb>`: parses, calls one library function, and turns our errors into one clear message."""

import argparse
import json
import pathlib
import sys

from unitoken_jax.config_file import is_override

QUICKSTART = "quickstart"
DEFAULT_MODEL = f"{QUICKSTART}/model"  # what `unitoken quickstart` leaves behind


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; the exit code. 2: what was asked cannot be done, one message says why."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    arguments = parser.parse_args([argument for argument in argv if not is_override(argument)])
    overrides = [argument for argument in argv if is_override(argument)]
    if overrides and not hasattr(arguments, "overrides"):
        parser.error(f"{overrides[0]}: only `unitoken train` takes --config overrides")
    arguments.overrides = overrides
    try:
        return arguments.run(arguments) or 0
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if arguments.debug:
            raise
        # str(KeyError) and str(OSError) say less than they could, str(ValueError) all there is.
        print(f"unitoken {arguments.verb}: {error}\n(--debug shows where)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"unitoken {arguments.verb}: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("unitoken", description="One decoder that reads and draws pictures.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run, help: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=help, description=help, allow_abbrev=False)
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        one.set_defaults(run=run)
        return one

    quickstart = verb("quickstart", _quickstart, "the whole path on a small model, on a CPU")
    quickstart.add_argument("--out", default=QUICKSTART, metavar="DIR")
    quickstart.add_argument("--minutes", type=float, default=15, help="time budget (default 15)")
    quickstart.add_argument("--seed", type=int, default=0)

    train = verb("train", _train, "train as a config file says; --config.a.b=c changes one of its values")
    train.add_argument(
        "--config", required=True, metavar="FILE", help="configs/stage2.py or configs/stage2.py:argument"
    )
    train.add_argument(
        "--workdir", required=True, metavar="DIR", help="where the run lives, and resumes from"
    )
    train.set_defaults(overrides=())

    tokenize = verb(
        "tokenize", _tokenize, "write the VQ codes of a data set's pictures once, before training"
    )
    _model_argument(tokenize)
    tokenize.add_argument("--data", required=True, metavar="FILE", help="conversations, JSON or JSONL")
    tokenize.add_argument("--out", metavar="DIR", help="default: beside the data file, where training looks")

    generate = verb("generate", _generate, "draw pictures of a prompt")
    _model_argument(generate)
    generate.add_argument("--prompt", required=True, metavar="TEXT")
    generate.add_argument(
        "--out", required=True, metavar="PNG", help="with --number N: PNG-0.png, PNG-1.png, ..."
    )
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--guidance", type=float, help="1 is none (default: the model's)")
    generate.add_argument("--top-k", type=int, help="1 is greedy (default: the model's)")
    generate.add_argument("--temperature", type=float, help="0 is greedy (default: the model's)")
    generate.add_argument("--number", type=int, default=1, help="how many pictures")
    generate.add_argument("--size", type=_size, metavar="WxH", help="pixels (default: as in training)")
    _tokens_argument(generate)

    answer = verb("answer", _answer, "answer a question, about a picture or without one")
    _model_argument(answer)
    answer.add_argument(
        "--image", action="append", default=[], metavar="PNG", help="may be given several times"
    )
    answer.add_argument("--question", required=True, metavar="TEXT")
    answer.add_argument("--max-tokens", type=int, help="longest answer (default: the model's)")
    _tokens_argument(answer)

    verb("doctor", _doctor, "is this machine ready, and if not, what to do")
    return parser


def _model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL", help=f"model directory (default: {DEFAULT_MODEL})")


def _tokens_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--save-tokens", metavar="FILE.json", help="also write the token ids")


def _size(text: str) -> tuple[int, int]:
    """ "WxH" -> (height, width)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}; expected WIDTHxHEIGHT in pixels, for example 512x512")
    return int(height), int(width)


def _model(arguments) -> str:
    if arguments.model is None and not pathlib.Path(DEFAULT_MODEL).is_dir():
        raise FileNotFoundError(
            f"no --model was given, and there is no {DEFAULT_MODEL} here: give a model directory, or run "
            "`unitoken quickstart` in this folder first"
        )
    return arguments.model or DEFAULT_MODEL


def _quickstart(arguments):
    from unitoken_jax.quickstart.run import run

    run(arguments.out, minutes=arguments.minutes, seed=arguments.seed)


def _train(arguments):
    from unitoken_jax.config_file import load_config
    from unitoken_jax.train.loop import train

    train(load_config(arguments.config, arguments.overrides), arguments.workdir)


def _tokenize(arguments):
    from unitoken_jax.generate.tokenize import tokenize

    path = tokenize(_model(arguments), arguments.data, arguments.out)
    print(path)


def _generate(arguments):
    from unitoken_jax.model_dir import UniToken

    files = _picture_files(arguments.out, arguments.number)
    drawings = UniToken.load(_model(arguments)).draw(
        [arguments.prompt],
        number=arguments.number,
        seed=arguments.seed,
        guidance=arguments.guidance,
        top_k=arguments.top_k,
        temperature=arguments.temperature,
        size=arguments.size,
    )
    for file, drawing in zip(files, drawings):
        drawing.picture.save(file)
        print(file)
    if arguments.save_tokens:
        rows = [drawing.tokens.tolist() for drawing in drawings]
        _save_tokens(
            arguments.save_tokens, {"prompt": arguments.prompt, "seed": arguments.seed, "tokens": rows}
        )


def _picture_files(out: str, number: int) -> list[pathlib.Path]:
    """Where the pictures go, checked before minutes are spent drawing them."""
    from PIL import Image

    path = pathlib.Path(out)
    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--out {out}: no picture format is known by the ending {path.suffix!r}; use .png")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: the folder {path.parent} does not exist")
    if number < 1:
        raise ValueError(f"--number is {number}; expected at least 1")
    return [path] if number == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(number)]


def _answer(arguments):
    from unitoken_jax.model_dir import UniToken

    parts = [*map(pathlib.Path, arguments.image), arguments.question]
    (answer,) = UniToken.load(_model(arguments)).reply([parts], max_tokens=arguments.max_tokens)
    print(answer.text)
    if arguments.save_tokens:
        saved = {"question": arguments.question, "images": arguments.image, "tokens": answer.tokens.tolist()}
        _save_tokens(arguments.save_tokens, saved)


def _save_tokens(path: str, values: dict) -> None:
    pathlib.Path(path).write_text(json.dumps(values) + "\n", encoding="utf-8")


def _doctor(arguments) -> int:
    from unitoken_jax.doctor import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
