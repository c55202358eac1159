"""The serving engine against the offline batch: tokens a second, and the time to the first token.

    python benchmarks/serve.py --out serve.json                   # the small model of the package
    python benchmarks/serve.py --size 100M --out serve_100M.json  # random weights, text alone
    python benchmarks/serve.py --small --out small.json           # seconds: does it work?

CLIENTS threads ask the engine, each its next question when the last one is answered, and the offline calls
(`answer`, `generate`) do the same work, CLIENTS at one time. Both are run once before they are timed. There
is no HTTP between: what that costs is the server's own affair. Nothing else may run on the machine meanwhile.
"""

import argparse
import dataclasses
import json
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Sequence

import decode_speed
import decode_timing
import jax
import numpy as np
from PIL import Image

from unitoken_jax import UniToken
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.sequence.conversation import make_conversation
from unitoken_jax.serve.engine import Engine
from unitoken_jax.serve.requests import (
    EngineLimits,
    Finished,
    ImageFinished,
    ImageRequest,
    ImageRows,
    Request,
    TextDelta,
    TextRequest,
)

CLIENTS = 16
ROUNDS = 6  # questions of each client
ANSWER_TOKENS = 64
THINGS = ("red ring", "blue box", "green 7", "yellow cross", "small circle", "large square", "grey A")


def random_model(size: str) -> UniToken:
    """A decoder of `size` with random weights, under the small model's tokenizer; it has no images."""
    model = UniToken.load()
    vocab_size = model.config.decoder.vocab_size
    decoder = dataclasses.replace(decode_speed.SIZES[size], vocab_size=vocab_size)
    config = dataclasses.replace(model.config, decoder=decoder)
    params = decode_timing.random_decoder(config, "float32")
    return UniToken(config, params, model.tokenizer)


def questions(number: int, with_images: bool) -> list[list]:
    """Questions of one user each, every other one about an image."""
    rng = np.random.default_rng(0)
    asked: list[list] = []
    for i in range(number):
        words = f"what is {'left' if i % 2 else 'right'} of the {THINGS[i % 7]} and the {THINGS[i // 7 % 7]}?"
        pixels = rng.integers(0, 256, (48, 48, 3), np.uint8)
        asked.append([Image.fromarray(pixels), words] if with_images and i % 2 else [words])
    return asked


def prompts(number: int) -> list[str]:
    """Descriptions of images."""
    return [f"a {THINGS[i % 7]} above a {THINGS[i // 7 % 7]}" for i in range(number)]


def serve(engine: Engine, requests: Sequence[Request], clients: int) -> dict:
    """Seconds, tokens, and each request's seconds to its first token or rows, asked by `clients` threads."""
    waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
    for request in requests:
        waiting.put(request)
    firsts: list[float] = []
    tokens: list[int] = []

    def client() -> None:
        while True:
            try:
                request = waiting.get_nowait()
            except queue.Empty:
                return
            start, first = time.perf_counter(), None
            for event in engine.submit(request):
                if first is None and isinstance(event, TextDelta | ImageRows | ImageFinished | Finished):
                    first = time.perf_counter() - start
                if isinstance(event, Finished):
                    tokens.append(event.completion_tokens)
            firsts.append(first or 0.0)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seconds": time.perf_counter() - start, "tokens": sum(tokens), "first_seconds": firsts}


def timed(run: Callable[[], int]) -> dict:
    """Seconds and tokens of the second of two runs."""
    run()
    start = time.perf_counter()
    tokens = run()
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


def compare(engine: Engine, requests: Sequence[Request], offline: Callable[[], int]) -> dict:
    """Of one kind of request: offline, served to CLIENTS clients, and served to one."""
    serve(engine, requests[:CLIENTS], CLIENTS)
    served = serve(engine, requests, CLIENTS)
    alone = serve(engine, requests[: 2 * CLIENTS], 1)
    batch = timed(offline)
    rates = {name: run["tokens"] / run["seconds"] for name, run in (("served", served), ("offline", batch))}
    p95 = {
        name: float(np.percentile(run["first_seconds"], 95)) for name, run in (("16", served), ("1", alone))
    }
    return {
        "requests": len(requests),
        "served_tokens_per_second": rates["served"],
        "offline_tokens_per_second": rates["offline"],
        "of_offline": rates["served"] / rates["offline"],
        "p95_first_token_alone": p95["1"],
        "p95_first_token_of_16": p95["16"],
        "first_token_ratio": p95["16"] / p95["1"],
    }


def measure(model: Runtime, rounds: int, answer_tokens: int) -> dict:
    """All figures of a model."""
    draws, reads = bool(model.params.get("vqgan")), bool(model.params.get("siglip"))
    limits = EngineLimits(
        text_rows=CLIENTS,
        image_rows=CLIENTS if draws else 0,
        prompt_tokens=512,
        answer_tokens=answer_tokens,
        queue=4 * CLIENTS,
    )
    engine = Engine(model, limits)
    start = time.perf_counter()
    engine.start(lambda done, total, what: print(f"{done}/{total} {what}", flush=True))
    found: dict = {"device": jax.devices()[0].device_kind, "start_seconds": time.perf_counter() - start}
    user = UniToken(model.config, model.params, model.tokenizer)

    asked = questions(rounds * CLIENTS, reads)
    sampled = {"temperature": 1.0, "max_tokens": answer_tokens, "seed": 1}
    requests = [TextRequest(make_conversation([parts]), **sampled) for parts in asked]

    def answer() -> int:
        results = user.text_results(asked, batch=CLIENTS, **sampled)
        return sum(len(result.tokens) + result.complete for result in results)

    found["text"] = compare(engine, requests, answer)
    if draws:
        texts = prompts(rounds * CLIENTS)
        drawn = [ImageRequest(text, seed=i, partial=False) for i, text in enumerate(texts)]
        grammar_tokens = serve(engine, drawn[:1], 1)["tokens"]

        def draw() -> int:
            return grammar_tokens * len(user.image_results(texts, batch=CLIENTS))

        found["images"] = compare(engine, drawn, draw)
    engine.close()
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="a model directory (default: the package's)")
    parser.add_argument("--size", choices=decode_speed.SIZES, help="instead: random weights of this size")
    parser.add_argument("--small", action="store_true", help="one question a client, short answers")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="JSON")
    options = parser.parse_args(arguments)
    model = random_model(options.size) if options.size else UniToken.load(options.model)
    found = measure(model, 1 if options.small else ROUNDS, 8 if options.small else ANSWER_TOKENS)
    found["model"] = options.size or options.model or "small"
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
