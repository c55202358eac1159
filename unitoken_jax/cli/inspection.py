"""`unitoken inspect` and `score`: what a model or a data set holds, and the loss of each conversation."""

import argparse
import os
import sys

from unitoken_jax.cli.options import (
    AddVerb,
    add_adapted_model_options,
    check_output_file,
    model_directory,
    whole_number,
)
from unitoken_jax.pretrained import DEFAULT_MODEL


def add_verbs(add_verb: AddVerb) -> None:
    """Adds this file's verbs to the command line."""
    inspect = add_verb(
        "inspect",
        run_inspect,
        "what a model directory or an adapter holds, or how training sees a data set",
        "unitoken inspect MODEL",
        "unitoken inspect train.jsonl --model MODEL --row 0 --sheet sheet.png",
    )
    inspect.add_argument(
        "what", nargs="?", metavar="MODEL|ADAPTER|DATA", help=f"what to look at (default: {DEFAULT_MODEL})"
    )
    inspect.add_argument(
        "--model",
        metavar="MODEL",
        help="of a data set: whose tokenizer and settings count (default: as above)",
    )
    inspect.add_argument(
        "--row",
        type=whole_number(0),
        action="append",
        help="example, from 0, several times if need be (default: the first good one)",
    )
    inspect.add_argument("--sheet", metavar="PNG", help="write the example's images and crops")
    inspect.add_argument(
        "--images", default="", metavar="DIR", help="their folder, or 'x/*.tar' (default: the data's)"
    )
    inspect.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="of tokens (default: auto, on a terminal)",
    )
    inspect.add_argument(
        "--against",
        metavar="RECORD.npz",
        help="compare layer by layer with PyTorch's outputs, recorded by launch/record_torch.py",
    )

    score = add_verb(
        "score",
        run_score,
        "the loss of each conversation of a file",
        "unitoken score --data conversations.json --out scores.jsonl",
        "unitoken score --model runs/mine/model --data val.jsonl --out scores.jsonl",
    )
    add_adapted_model_options(score)
    score.add_argument("--data", required=True, metavar="FILE", help="conversations, JSON or JSONL")
    score.add_argument("--out", required=True, metavar="JSONL", help="the file to write, a line each")


def run_inspect(arguments: argparse.Namespace) -> None:
    """`unitoken inspect`: prints what a data set, a model or an adapter holds; --model says that it is a data
    set."""
    if arguments.what and (arguments.model or _looks_like_data(arguments.what)):
        lines = _inspect_data(arguments)
    else:
        arguments.model = arguments.what
        lines = _inspect_model(model_directory(arguments), arguments.against)
    print("\n".join(lines))


def _inspect_model(model: str, against: str | None) -> list[str]:
    """What a model directory or an adapter holds, or where the model differs from the record `against`."""
    if against:
        from unitoken_jax.inspection.compare import compare

        return compare(model, against)
    from unitoken_jax.checkpoint.adapter import adapter_folder, is_adapter

    if is_adapter(adapter_folder(model)):
        from unitoken_jax.inspection.adapter import describe_adapter

        return describe_adapter(model)
    from unitoken_jax.convert.from_torch import inspect

    return inspect(model)


def _looks_like_data(path_or_pattern: str) -> bool:
    """Whether it is a file, a folder of images, of a TFDS data set or ArrayRecord files, or a pattern."""
    from unitoken_jax.data.image_folder import metadata_files
    from unitoken_jax.storage.paths import as_path

    path = as_path(path_or_pattern)
    if not path.is_dir():
        return path.is_file() or any(sign in path_or_pattern for sign in "*?[")
    names = {file.name for file in path.iterdir()}
    is_set = "dataset_info.json" in names or any("array_record" in name for name in names)
    return is_set or bool(metadata_files(path))


def _inspect_data(arguments: argparse.Namespace) -> list[str]:
    """How training sees the rows of a data set."""
    from unitoken_jax.checkpoint.model_directory import load_settings
    from unitoken_jax.config import SourceConfig
    from unitoken_jax.inspection.show import inspect_data

    config, tokenizer, _ = load_settings(model_directory(arguments))
    return inspect_data(
        SourceConfig(arguments.what, images=arguments.images),
        config,
        tokenizer,
        arguments.row,
        sheet=arguments.sheet,
        colour=_use_colour(arguments.color),
    )


def _use_colour(option: str) -> bool:
    """Whether to write colours; "auto": on a terminal whose user has nothing against them."""
    return option == "always" or (option == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ)


def run_score(arguments: argparse.Namespace) -> None:
    """`unitoken score`: writes the loss of every conversation, and prints a summary."""
    from unitoken_jax.inspection.score import score_file

    check_output_file(arguments.out, "--out")
    print(score_file(arguments.model, arguments.data, arguments.out, arguments.adapter))
