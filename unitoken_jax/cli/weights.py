"""`unitoken convert` and `export`: published PyTorch weights to a model directory, and back, and adapters
from and to the files of `peft`; `quantize` and `merge`: a model directory to another.
"""

import argparse

from unitoken_jax.cli.options import (
    AddVerb,
    add_adapter_option,
    add_model_option,
    model_directory,
    side_or_image_size,
)
from unitoken_jax.pretrained import DEFAULT_MODEL


def add_verbs(add_verb: AddVerb) -> None:
    """Adds this file's verbs to the command line."""
    _add_convert(add_verb)
    _add_export(add_verb)
    _add_quantize_and_merge(add_verb)


def _add_convert(add_verb: AddVerb) -> None:
    convert = add_verb(
        "convert",
        run_convert,
        "published PyTorch weights -> a model directory; peft's files -> an adapter folder",
        "unitoken convert --checkpoint UNITOKEN --vqgan chameleon/tokenizer --out MODEL",
        "unitoken convert --peft PEFT --model MODEL --out ADAPTER",
    )
    source = convert.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="UniToken's weights, or a decoder's alone; a folder, or a hub id",
    )
    source.add_argument("--peft", metavar="DIR", help="a LoRA adapter's folder, as `peft` saves it")
    convert.add_argument(
        "--model", metavar="MODEL", help=f"with --peft: the adapter's base (default: {DEFAULT_MODEL})"
    )
    convert.add_argument(
        "--siglip", metavar="DIR", help="SigLIP's folder; needed where the checkpoint's is not SO400M"
    )
    convert.add_argument("--vqgan", metavar="DIR", help="Meta's folder chameleon/tokenizer; needed to draw")
    convert.add_argument(
        "--out", required=True, metavar="DIR", help="the model directory, or adapter folder, to write"
    )
    convert.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the written weights (default: as in the checkpoint)",
    )
    convert.add_argument(
        "--image-size",
        type=side_or_image_size,
        metavar="SIDE",
        help="of the crop that VQ codes are made of, or its WxH, in pixels (default: 512)",
    )
    convert.add_argument(
        "--resolution",
        choices=("anyres", "base"),
        help="features of tiles too, or of the whole image alone (default: as the checkpoint says)",
    )
    convert.add_argument(
        "--stage-one-start",
        action="store_true",
        help="zero the image rows of the output layer, as stage I begins",
    )
    convert.add_argument(
        "--verify", action="store_true", help="read the result again and compare every value"
    )


def _add_export(add_verb: AddVerb) -> None:
    export = add_verb(
        "export",
        run_export,
        "a model directory -> the published layout; an adapter folder -> peft's files",
        "unitoken export --model MODEL --vqgan --per-head --out EXPORTED",
        "unitoken export --adapter ADAPTER --out PEFT",
    )
    add_model_option(export)
    export.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    export.add_argument("--vqgan", action="store_true", help="also the VQ-GAN, as safetensors")
    export.add_argument("--per-head", action="store_true", help="QK-norms as `transformers` wants them")
    add_adapter_option(export)
    export.add_argument("--base-name", metavar="NAME", help="with --adapter: what its files call the base")


def _add_quantize_and_merge(add_verb: AddVerb) -> None:
    quantize = add_verb(
        "quantize",
        run_quantize,
        "a model directory -> one in 8 or 4 bits, for inference",
        "unitoken quantize --model MODEL --out MODEL8",
        "unitoken quantize --model MODEL --bits 4 --out MODEL4",
    )
    add_model_option(quantize)
    quantize.add_argument("--out", required=True, metavar="MODEL", help="the model directory to write")
    quantize.add_argument(
        "--bits", type=int, choices=(8, 4), default=8, help="of a weight of the decoder (default: 8)"
    )

    merge = add_verb(
        "merge",
        run_merge,
        "an adapter and its base -> an ordinary model directory",
        "unitoken merge --adapter tuned --out MERGED",
        "unitoken merge --adapter tuned --model MODEL --out MERGED",
    )
    add_adapter_option(merge, required=True)
    add_model_option(merge)
    merge.add_argument("--out", required=True, metavar="MODEL", help="the model directory to write")


def run_convert(arguments: argparse.Namespace) -> None:
    """`unitoken convert`: prints what it read and wrote."""
    if arguments.peft is not None:
        from unitoken_jax.convert.peft import import_peft

        networks = ("siglip", "vqgan", "dtype", "image_size", "resolution", "stage_one_start", "verify")
        _refuse(arguments, "--peft", *networks)
        print("\n".join(import_peft(arguments.peft, model_directory(arguments), arguments.out)))
        return
    _refuse(arguments, "--checkpoint", "model")
    from unitoken_jax.convert.from_torch import ConvertOptions, convert

    options = ConvertOptions(
        dtype=arguments.dtype,
        image_size=arguments.image_size or 512,
        resolution=arguments.resolution,
        stage_one_start=arguments.stage_one_start,
        verify=arguments.verify,
    )
    lines = convert(arguments.checkpoint, arguments.siglip, arguments.vqgan, arguments.out, options)
    print("\n".join(lines))


def run_export(arguments: argparse.Namespace) -> None:
    """`unitoken export`: prints what it wrote."""
    if arguments.adapter is not None:
        from unitoken_jax.convert.peft import export_peft

        _refuse(arguments, "--adapter", "vqgan", "per_head")
        lines = export_peft(
            arguments.adapter, arguments.out, model=arguments.model, base_name=arguments.base_name
        )
        print("\n".join(lines))
        return
    _refuse(arguments, "a model", "base_name")
    from unitoken_jax.convert.to_torch import export

    lines = export(
        model_directory(arguments), arguments.out, vqgan=arguments.vqgan, per_head=arguments.per_head
    )
    print("\n".join(lines))


def _refuse(arguments: argparse.Namespace, given: str, *names: str) -> None:
    """Raises ValueError where an option of these `names` is given, which has no meaning with `given`."""
    for name in names:
        if getattr(arguments, name):
            raise ValueError(f"--{name.replace('_', '-')} has no meaning with {given}: leave it out")


def run_quantize(arguments: argparse.Namespace) -> None:
    """`unitoken quantize`: prints what it wrote."""
    from unitoken_jax.checkpoint.quantization import quantize_model

    print("\n".join(quantize_model(model_directory(arguments), arguments.out, arguments.bits)))


def run_merge(arguments: argparse.Namespace) -> None:
    """`unitoken merge`: prints what it wrote."""
    from unitoken_jax.checkpoint.merge import merge_adapter

    print("\n".join(merge_adapter(arguments.adapter, arguments.out, arguments.model)))
