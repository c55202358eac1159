"""`unitoken <verb>`: parses, calls one library function, and turns our errors into one clear message."""

import argparse
import os
import pathlib
import sys

from unitoken_jax.cli import compile_cache
from unitoken_jax.config_file import is_override

QUICKSTART = "quickstart"
DEFAULT_MODEL = f"{QUICKSTART}/model"  # what `unitoken quickstart` leaves behind
OUTPUTS = ("out", "sheet", "json", "save_tokens")  # arguments that name what a verb writes


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; the exit code. 2: what was asked cannot be done, one message says why."""
    own_process = argv is None  # called from Python, jax's settings are the caller's
    if own_process:
        compile_cache.enable()
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    arguments = parser.parse_args([argument for argument in argv if not is_override(argument)])
    overrides = [argument for argument in argv if is_override(argument)]
    if overrides and not hasattr(arguments, "overrides"):
        parser.error(f"{overrides[0]}: only `unitoken train` and `plan` take --config overrides")
    arguments.overrides, arguments.own_process = overrides, own_process
    try:
        _refuse_urls(arguments)
        return arguments.run(arguments) or 0
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        # str(KeyError) and str(OSError) say less than they could, str(ValueError) all there is.
        print(f"unitoken {arguments.verb}: {error}\n(--debug shows where)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"unitoken {arguments.verb}: stopped", file=sys.stderr)
        return 130


def _refuse_urls(arguments) -> None:
    """ValueError where a verb would make a folder "gs:" of a URL; `train` alone writes to one."""
    for name in OUTPUTS:
        if "://" in (value := getattr(arguments, name, None) or ""):
            raise ValueError(
                f"--{name.replace('_', '-')} {value} is a URL; expected a path on this machine, as only "
                "`unitoken train` writes to a URL: copy what you get there (gcloud storage cp --recursive)"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("unitoken", description="One decoder that reads and draws images.")
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

    ablate = verb("ablate", _ablate, "the paper's Tables 5 and 6 with the quickstart's model, several seeds")
    ablate.add_argument("--out", default="ablation", metavar="DIR", help="a killed run goes on from here")
    ablate.add_argument("--scale", type=float, default=1.0, help="of data and steps (1: about 3 hours)")
    ablate.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of every model (default 3)")
    ablate.add_argument("--first-seed", type=int, default=0, metavar="K", help="of those N (default 0)")

    train = verb("train", _train, "train as a config file says; --config.a.b=c changes one of its values")
    train.add_argument(
        "--config", required=True, metavar="FILE", help="configs/stage2.py or configs/stage2.py:argument"
    )
    train.add_argument(
        "--workdir", required=True, metavar="DIR", help="where the run lives, and resumes from; or gs://..."
    )
    train.add_argument(
        "--profile", type=int, metavar="STEPS", help="trace that many steps into WORKDIR/profile"
    )
    train.set_defaults(overrides=())

    plan = verb("plan", _plan, "does a training step fit, and how fast can it be; exit code 1 if it does not")
    plan.add_argument("--config", required=True, metavar="FILE", help="as for train, with the same overrides")
    plan.add_argument(
        "--topology", default="local", metavar="SLICE", help="v5e:16x16, v5p:4x4x4, ..., or this machine's"
    )
    plan.add_argument("--json", metavar="FILE", help="also write all of it as JSON")
    plan.add_argument("--search", action="store_true", help="rank meshes, remat policies and rows")
    plan.set_defaults(overrides=())

    tokenize = verb("tokenize", _tokenize, "write the VQ codes of a data set's images once, before training")
    _model_argument(tokenize)
    tokenize.add_argument("--data", required=True, metavar="DATA", help="JSON, JSONL, ArrayRecord or TFDS")
    tokenize.add_argument("--out", metavar="DIR", help="default: beside the data, where training looks")
    tokenize.add_argument("--images", metavar="DIR", help="their folder, or tar shards 'x/*.tar'")
    tokenize.add_argument(
        "--share", type=_share, metavar="I/N", help="do the I-th of N parts (from 0); the last one joins them"
    )
    tokenize.add_argument("--skip", action="store_true", help="report what is bad, and leave it out")

    generate = verb("generate", _generate, "draw images of a prompt")
    _model_argument(generate)
    generate.add_argument("--prompt", required=True, metavar="TEXT")
    generate.add_argument(
        "--out", required=True, metavar="PNG", help="with --number N: PNG-0.png, PNG-1.png, ..."
    )
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--guidance", type=float, help="1 is none (default: the model's)")
    generate.add_argument("--top-k", type=int, help="1 is greedy (default: the model's)")
    generate.add_argument("--temperature", type=float, help="0 is greedy (default: the model's)")
    generate.add_argument("--number", type=int, default=1, help="how many images")
    generate.add_argument("--size", type=_size, metavar="WxH", help="pixels (default: as in training)")
    generate.add_argument(
        "--speculate", type=int, metavar="W", help="tokens a pass reads; same images (default: the model's)"
    )
    generate.add_argument("--progress", action="store_true", help="write the rows so far while it draws")
    _tokens_argument(generate)
    _running_arguments(generate)

    answer = verb("answer", _answer, "answer a question, about an image or without one")
    _model_argument(answer)
    answer.add_argument(
        "--image", action="append", default=[], metavar="PNG", help="may be given several times"
    )
    answer.add_argument(
        "--question", required=True, metavar="TEXT", help="<|image|> in it says where an image stands"
    )
    answer.add_argument("--max-tokens", type=int, help="longest answer (default: the model's)")
    answer.add_argument("--stream", action="store_true", help="print the answer as it is written")
    _tokens_argument(answer)
    _running_arguments(answer)

    chat = verb("chat", _chat, "answer with text and images: draw, or change an image")
    _model_argument(chat)
    chat.add_argument(
        "--image", action="append", default=[], metavar="PNG", help="may be given several times"
    )
    chat.add_argument("--question", metavar="TEXT", help="<|image|> in it says where an image stands")
    chat.add_argument(
        "--conversation", metavar="FILE", help="instead: JSON or JSONL as for training, questions at the ends"
    )
    chat.add_argument("--draw", action="store_true", help="the answer begins with an image")
    chat.add_argument("--out", required=True, metavar="PNG", help="its images: PNG-0.png, PNG-1.png, ...")
    chat.add_argument("--seed", type=int, default=0)
    chat.add_argument("--guidance", type=float, help="of images (default: the model's)")
    chat.add_argument("--max-tokens", type=int, help="of text in an answer (default: the model's)")
    _running_arguments(chat)

    _convert_verbs(verb)
    verb("doctor", _doctor, "is this machine ready, and if not, what to do")
    return parser


def _convert_verbs(verb) -> None:
    convert = verb("convert", _convert, "published PyTorch weights -> a model directory")
    convert.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="UniToken's, or a decoder's alone; or a hub id"
    )
    convert.add_argument("--siglip", metavar="DIR", help="needed where the checkpoint's tower is not SO400M")
    convert.add_argument("--vqgan", metavar="DIR", help="Meta's chameleon/tokenizer; needed to draw")
    convert.add_argument("--out", required=True, metavar="MODEL")
    convert.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    convert.add_argument(
        "--image-size", type=_side, default=512, metavar="SIDE", help="of the discrete crop, pixels; or WxH"
    )
    convert.add_argument("--resolution", choices=("anyres", "base"), help="default: as the checkpoint says")
    convert.add_argument(
        "--stage-one-start", action="store_true", help="zero the image rows of the output layer"
    )
    convert.add_argument("--verify", action="store_true", help="read the result again and compare")

    export = verb("export", _export, "a model directory -> the published layout")
    _model_argument(export)
    export.add_argument("--out", required=True, metavar="DIR")
    export.add_argument("--vqgan", action="store_true", help="also the VQ-GAN, as safetensors")
    export.add_argument("--per-head", action="store_true", help="QK-norms as `transformers` wants them")

    inspect = verb("inspect", _inspect, "what a model directory holds, or how training sees a data set")
    inspect.add_argument("what", nargs="?", metavar="MODEL|DATA", help=f"default: {DEFAULT_MODEL}")
    inspect.add_argument("--model", metavar="MODEL", help="of a data set: whose tokenizer and settings count")
    inspect.add_argument(
        "--row", type=int, action="append", help="example, from 0; may be given several times"
    )
    inspect.add_argument("--sheet", metavar="PNG", help="write the example's images and crops")
    inspect.add_argument("--images", default="", metavar="DIR", help="their folder, or 'x/*.tar'")
    inspect.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    inspect.add_argument(
        "--against",
        metavar="RECORD.npz",
        help="compare layer by layer with PyTorch's outputs, recorded by launch/record_torch.py",
    )

    score = verb("score", _score, "the loss of each conversation of a file")
    _model_argument(score)
    score.add_argument("--data", required=True, metavar="FILE", help="conversations, JSON or JSONL")
    score.add_argument("--out", required=True, metavar="JSONL")

    evaluate = verb("evaluate", _evaluate, "the paper's benchmarks: predictions, scores, a report")
    _model_argument(evaluate)
    evaluate.add_argument(
        "--benchmark", metavar="NAME", help="MMMU, MMBench_EN, ... (a wrong name lists them)"
    )
    evaluate.add_argument("--data", metavar="FILE", help="the benchmark's file, as VLMEvalKit has it (TSV)")
    evaluate.add_argument("--out", required=True, metavar="DIR", help="a killed run goes on from here")
    evaluate.add_argument("--predictions", metavar="FILE", help="score this file, without a model")
    evaluate.add_argument("--scores", metavar="FILE", help="take up what GenEval's or T2I's scorer wrote")
    evaluate.add_argument("--recipe", metavar="FILE", help="repeat the run that this recipe is of")
    evaluate.add_argument("--template", help="how questions are put: vlmevalkit (default) or direct")
    evaluate.add_argument("--max-tokens", type=int, help="longest answer (default: the model's)")
    evaluate.add_argument("--batch", type=int, help="how many at one time (default 16)")
    evaluate.add_argument("--rewritten", metavar="FILE", help="draw these prompts, line by line, instead")
    evaluate.add_argument("--number", type=int, help="images a prompt (default: the benchmark's)")
    evaluate.add_argument("--seed", type=int, help="of the images (default 0)")
    evaluate.add_argument("--guidance", type=float, help="default: 5.5 for GenEval, 5.0 for T2I-CompBench++")
    evaluate.add_argument("--top-k", type=int, help="of the images (default: the model's)")
    evaluate.add_argument("--temperature", type=float, help="of the images (default: the model's)")


def _model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL", help=f"model directory (default: {DEFAULT_MODEL})")


def _tokens_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--save-tokens", metavar="FILE.json", help="also write the token ids")


def _running_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timing", action="store_true", help="say how long the tokens took")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="the decoder in so many bits")


def _size(text: str) -> tuple[int, int]:
    """ "WxH" -> (height, width)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}; expected WIDTHxHEIGHT in pixels, for example 512x512")
    return int(height), int(width)


def _side(text: str) -> int | tuple[int, int]:
    return int(text) if text.isdigit() else _size(text)


def _share(text: str) -> tuple[int, int]:
    """ "I/N" -> (I, N)."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}; expected I/N with I from 0 to N - 1, for example 0/4")
    return int(index), int(count)


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


def _ablate(arguments):
    from unitoken_jax.ablate.run import run

    path = run(arguments.out, scale=arguments.scale, seeds=arguments.seeds, first_seed=arguments.first_seed)
    print(path.read_text(encoding="utf-8"))


def _train(arguments):
    from unitoken_jax.cli import distributed
    from unitoken_jax.config_file import load_config
    from unitoken_jax.train.loop import train

    overrides = list(arguments.overrides)
    if arguments.profile is not None:
        overrides.append(f"--config.train.profile_steps={arguments.profile}")
    config = load_config(arguments.config, overrides)
    if arguments.own_process:
        distributed.start()
    try:
        train(config, arguments.workdir)
    except Exception:
        distributed.fail()
        raise


def _plan(arguments) -> int:
    if arguments.topology != "local":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # else jax looks for the TPU that is only planned for
    from unitoken_jax.config_file import load_config
    from unitoken_jax.planning.search import run

    config = load_config(arguments.config, arguments.overrides)
    return run(config, arguments.topology, json_file=arguments.json, searching=arguments.search)


def _convert(arguments):
    from unitoken_jax.convert.from_torch import convert

    lines = convert(
        arguments.checkpoint,
        arguments.siglip,
        arguments.vqgan,
        arguments.out,
        dtype=arguments.dtype,
        image_size=arguments.image_size,
        resolution=arguments.resolution,
        stage_one_start=arguments.stage_one_start,
        verify=arguments.verify,
    )
    print("\n".join(lines))


def _export(arguments):
    from unitoken_jax.convert.to_torch import export

    lines = export(_model(arguments), arguments.out, vqgan=arguments.vqgan, per_head=arguments.per_head)
    print("\n".join(lines))


def _inspect(arguments):
    if arguments.what and (arguments.model or _looks_like_data(arguments.what)):
        return _inspect_data(arguments)
    arguments.model = arguments.what
    model = _model(arguments)
    if arguments.against:
        from unitoken_jax.inspection.compare import compare

        print("\n".join(compare(model, arguments.against)))
    else:
        from unitoken_jax.convert.from_torch import inspect

        print("\n".join(inspect(model)))


def _looks_like_data(what: str) -> bool:
    """Whether `what` is a file, a pattern, or a folder of a TFDS data set or ArrayRecord files."""
    from unitoken_jax.storage.paths import as_path

    path = as_path(what)
    if "*" in what or path.is_file():
        return True
    return (path / "dataset_info.json").exists() or any(path.glob("*array_record*"))


def _inspect_data(arguments):
    from unitoken_jax.checkpoint.model_directory import load_settings
    from unitoken_jax.config import SourceConfig
    from unitoken_jax.inspection.show import inspect_data

    config, tokenizer, _ = load_settings(_model(arguments))
    lines = inspect_data(
        SourceConfig(arguments.what, images=arguments.images),
        config,
        tokenizer,
        arguments.row or [0],
        sheet=arguments.sheet,
        colour=_colour(arguments.color),
    )
    print("\n".join(lines))


def _colour(wanted: str) -> bool:
    """Whether to write colours; "auto": on a terminal whose user has nothing against them."""
    return wanted == "always" or (wanted == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ)


def _score(arguments):
    from unitoken_jax.inspection.score import score_file

    print(score_file(_model(arguments), arguments.data, arguments.out))


def _evaluate(arguments):
    from unitoken_jax.cli.evaluate import evaluate

    names = ("benchmark", "data", "out", "predictions", "scores", "recipe", "template", "max_tokens", "batch")
    names += ("rewritten", "number", "seed", "guidance", "top_k", "temperature")
    given = {name: getattr(arguments, name) for name in names}
    print("\n".join(evaluate(lambda: _model(arguments), **given)))


def _tokenize(arguments):
    from unitoken_jax.generate.tokenize import tokenize

    given = {"images": arguments.images, "share": arguments.share}
    settings = {name: value for name, value in given.items() if value is not None}
    if arguments.skip:
        settings["on_error"] = lambda error: print(f"left out: {error}", file=sys.stderr)
    print(tokenize(_model(arguments), arguments.data, arguments.out, **settings))


def _generate(arguments):
    from unitoken_jax.cli import generate

    generate.generate(lambda: _model(arguments), arguments)


def _answer(arguments):
    from unitoken_jax.cli import generate

    generate.answer(lambda: _model(arguments), arguments)


def _chat(arguments):
    from unitoken_jax.cli import generate

    generate.chat(lambda: _model(arguments), arguments)


def _doctor(arguments) -> int:
    from unitoken_jax.cli.doctor import run

    return run()
