"""The first minute: what the first image, the first answer and those after them take, from an empty folder.

    python benchmarks/first_minute.py [--model MODEL] [--rounds 3]

Each round has a new folder and a new cache for compiled programs. In it a call runs twice, in processes of
its own: the first compiles, the second finds what the first compiled. `cpu` counts the seconds of all cores
together: on a machine that others use, they say more than the clock. Without --model, the model inside the
package is asked.
"""

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from PIL import Image, ImageDraw

UNITOKEN = ["-m", "unitoken_jax"]
PROMPT, QUESTION = "a red circle above a blue 7", "what is in the image?"
IN_PYTHON = f"""
import sys
from unitoken_jax import UniToken
UniToken.load(*sys.argv[1:]).generate([{PROMPT!r}])[0].save("b.png")
"""


def calls(model: str | None) -> dict[str, list[str]]:
    """What is measured: the arguments of python, by name."""
    option = ["--model", model] if model else []
    return {
        "--help": [*UNITOKEN, "--help"],
        "generate": [*UNITOKEN, "generate", *option, "--prompt", PROMPT, "--out", "a.png"],
        "answer": [*UNITOKEN, "answer", *option, "--image", "x.png", "--question", QUESTION],
        "UniToken.load, generate": ["-c", IN_PYTHON, *option[1:]],
    }


def measure(arguments: list[str], folder: pathlib.Path) -> tuple[float, float]:
    """(seconds, seconds of all cores together) of python with `arguments` in `folder`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environ["UNITOKEN_CACHE"] = str(folder / "cache")
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a Markdown table: the median of the rounds, and the longest in brackets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    print("| call | first, s | cpu | second, s | cpu |\n|---|---|---|---|---|")
    for name, command in calls(arguments.model and str(pathlib.Path(arguments.model).absolute())).items():
        rounds = []
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder:
                image = Image.new("RGB", (300, 200), "white")
                ImageDraw.Draw(image).ellipse((90, 40, 210, 160), "red")
                image.save(pathlib.Path(folder) / "x.png")
                first, second = (measure(command, pathlib.Path(folder)) for _ in range(2))
            rounds.append([*first, *second])
        cells = [f"{statistics.median(column):.1f} ({max(column):.1f})" for column in zip(*rounds)]
        print("|", " | ".join([name, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
