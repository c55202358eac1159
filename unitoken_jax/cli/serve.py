"""`unitoken serve`: its options, and the server that they describe."""

import argparse
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from unitoken_jax.cli.options import (
    AddVerb,
    add_adapted_model_options,
    count,
    image_size,
    load_model,
    model_directory,
    positive,
    whole_number,
)
from unitoken_jax.config import MeshConfig

if TYPE_CHECKING:
    import jax

    from unitoken_jax.serve.limits import HttpLimits
    from unitoken_jax.serve.requests import EngineLimits


def add_verbs(add_verb: AddVerb) -> None:
    """Adds this file's verb to the command line."""
    serve = add_verb(
        "serve",
        run_serve,
        "answer and draw for many users at one time, as OpenAI's API, with a page to try it",
        "unitoken serve --port 8000",
        "unitoken serve --model MODEL --host 0.0.0.0 --api-key-file keys.txt",
    )
    add_adapted_model_options(serve)
    serve.add_argument(
        "--quantize", choices=("int8", "int4"), help="hold the decoder in so many bits (default: as stored)"
    )
    serve.add_argument(
        "--mesh",
        type=mesh_sizes,
        metavar="D,F,T",
        help="devices along data, fsdp and tensor, one of them -1: what is left (default: fsdp over all)",
    )
    serve.add_argument(
        "--size",
        type=image_size,
        action="append",
        metavar="WxH",
        help="images that can be drawn; may be given several times (default: as in training)",
    )
    network = serve.add_argument_group("who may ask")
    network.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    network.add_argument(
        "--port", type=whole_number(0, 65535), default=8000, help="0: a free one (default: %(default)s)"
    )
    network.add_argument("--api-key-file", metavar="FILE", help="keys, one a line; requests must bring one")
    network.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="host name that requests are addressed to, where a proxy stands before it; may be given several "
        "times (default: this machine's own; any where --host is another address)",
    )
    network.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="images may be read from there by URL; may be given several times (default: data URLs alone)",
    )
    limits = serve.add_argument_group("limits")

    limits.add_argument(
        "--max-prompt-tokens",
        type=count,
        metavar="N",
        help="of a prompt, those of its images among them (default: 2,048, or one image and 512)",
    )

    def limit(option: str, type: Callable[[str], float], default: float, metavar: str, about: str) -> None:
        limits.add_argument(
            option, type=type, default=default, metavar=metavar, help=f"{about} (default: {default:,})"
        )

    limit("--rows", count, 16, "N", "answers, and as many images, written at one time")
    limit("--queue", count, 64, "N", "requests that wait for a row; one more is refused")
    limit("--max-answer-tokens", count, 512, "N", "of an answer's text")
    limit("--max-seconds", positive, 600, "S", "that a request may take, its waiting among them")
    limit("--max-request-mb", count, 20, "MB", "of a request")
    limit("--max-pixels", count, 16_000_000, "N", "of a request's images together")


def mesh_sizes(text: str) -> MeshConfig:
    """Reads "1,-1,2": devices along data, fsdp and tensor."""
    try:
        data, fsdp, tensor = map(int, text.split(","))
        return MeshConfig(data, fsdp, tensor)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r:.60}; expected three numbers, for example 1,-1,2 (data, fsdp, tensor)"
        ) from error


def run_serve(arguments: argparse.Namespace) -> None:
    """`unitoken serve`: prints its address when it is ready."""
    try:
        from unitoken_jax.serve import server
    except ImportError as error:
        raise ImportError(
            f"{error}: install what serving needs, pip install 'unitoken_jax[serve]'"
        ) from error
    from unitoken_jax.serve.app import Server

    limits = http_limits(arguments)
    # A port in use is told before minutes of loading.
    with server.listen(arguments.host, arguments.port) as listener:
        from unitoken_jax.serve.engine import Engine

        model = load_model(arguments, mesh=_mesh(arguments.mesh), quantize=arguments.quantize)
        if arguments.max_prompt_tokens is None:
            arguments.max_prompt_tokens = server.default_prompt_tokens(model)
        engine = Engine(model, engine_limits(arguments), arguments.size)
        name = server.model_name(arguments.adapter or model_directory(arguments))
        info = server.model_info(name, model, engine)
        server.serve(Server(engine, info, limits), listener, lambda line: print(line, flush=True))


def engine_limits(arguments: argparse.Namespace) -> "EngineLimits":
    """What the options say of the engine."""
    from unitoken_jax.serve.requests import EngineLimits

    return EngineLimits(
        text_rows=arguments.rows,
        image_rows=arguments.rows,
        prompt_tokens=arguments.max_prompt_tokens,
        answer_tokens=arguments.max_answer_tokens,
        queue=arguments.queue,
        seconds=arguments.max_seconds,
    )


def http_limits(arguments: argparse.Namespace) -> "HttpLimits":
    """What the options say of the HTTP server. Raises ValueError and OSError for the file of keys."""
    from unitoken_jax.serve.limits import LOOPBACK, HttpLimits, read_keys

    keys: tuple[str, ...] = ()
    if arguments.api_key_file is not None:
        text = pathlib.Path(arguments.api_key_file).read_text(encoding="utf-8")
        keys = read_keys(text, f"--api-key-file {arguments.api_key_file}")
    local = arguments.host in LOOPBACK
    body_bytes = arguments.max_request_mb << 20
    return HttpLimits(
        body_bytes=body_bytes,
        bodies_bytes=16 * body_bytes,
        pixels=arguments.max_pixels,
        hosts=tuple(host.lower() for host in arguments.allow_host),
        keys=keys,
        names=(*LOOPBACK, *map(str.lower, arguments.name)) if arguments.name or local else (),
    )


def _mesh(config: MeshConfig | None) -> "jax.sharding.Mesh | None":
    """The mesh that --mesh says; of all devices where it says nothing and there are several."""
    import jax

    from unitoken_jax.model.sharding import make_mesh

    if config is None:
        return make_mesh() if jax.device_count() > 1 else None
    return make_mesh(config)
