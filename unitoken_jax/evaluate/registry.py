"""The benchmarks there are, and what a user means by a name.

This is the one list: a benchmark that is added here is known to the command line and to the reports.
"""

import difflib
import os
import pathlib

from unitoken_jax.evaluate.benchmark import Benchmark
from unitoken_jax.evaluate.drawing.benchmark import DrawingBenchmark
from unitoken_jax.evaluate.drawing.geneval import GENEVAL
from unitoken_jax.evaluate.drawing.scenes import DRAW_SCENES
from unitoken_jax.evaluate.drawing.t2i_compbench import T2I_COMPBENCH
from unitoken_jax.evaluate.understanding.benchmark import UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.hallusion_bench import HALLUSION_BENCH
from unitoken_jax.evaluate.understanding.mathvista import MATH_VISTA
from unitoken_jax.evaluate.understanding.mmbench import MMBENCH_CN, MMBENCH_EN
from unitoken_jax.evaluate.understanding.mme import MME
from unitoken_jax.evaluate.understanding.mmmu import MMMU
from unitoken_jax.evaluate.understanding.mmvet import MM_VET
from unitoken_jax.evaluate.understanding.multiple_choice import AI2D, MMSTAR, SEED
from unitoken_jax.evaluate.understanding.ocr_bench import OCR_BENCH
from unitoken_jax.evaluate.understanding.scenes import SCENES

# In the order in which the paper's tables and our reports show them.
UNDERSTANDING_BENCHMARKS: tuple[UnderstandingBenchmark, ...] = (
    MMMU,
    MMBENCH_CN,
    MMBENCH_EN,
    MME,
    MMSTAR,
    SEED,
    MATH_VISTA,
    HALLUSION_BENCH,
    AI2D,
    OCR_BENCH,
    MM_VET,
    SCENES,
)
DRAWING_BENCHMARKS: tuple[DrawingBenchmark, ...] = (GENEVAL, T2I_COMPBENCH, DRAW_SCENES)
# Benchmarks that were called otherwise once, and their names now.
RENAMED = {"quickstart": DRAW_SCENES.name}
BENCHMARKS: tuple[Benchmark, ...] = (*UNDERSTANDING_BENCHMARKS, *DRAWING_BENCHMARKS)


def find_benchmark(name: str) -> Benchmark:
    """The benchmark that `name`, its own or another of its names, means.

    Raises ValueError listing what there is for an unknown name, or saying the new one for an old name.
    """
    folded = name.casefold()
    for benchmark in BENCHMARKS:
        if folded in (spelling.casefold() for spelling in (benchmark.name, *benchmark.aliases)):
            return benchmark
    if folded in RENAMED:
        raise ValueError(f"benchmark {name!r} is called {RENAMED[folded]} now")
    spellings = [spelling for benchmark in BENCHMARKS for spelling in (benchmark.name, *benchmark.aliases)]
    near = difflib.get_close_matches(name, spellings, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    questions = ", ".join(benchmark.name for benchmark in UNDERSTANDING_BENCHMARKS)
    images = ", ".join(benchmark.name for benchmark in DRAWING_BENCHMARKS)
    raise ValueError(
        f"unknown benchmark {name!r}.{hint} Known: {questions}, or VLMEvalKit's data set names; "
        f"for images: {images}"
    )


def find_drawing(name: str) -> DrawingBenchmark:
    """`find_benchmark` of a benchmark of images to draw; ValueError for one of questions."""
    benchmark = find_benchmark(name)
    if not isinstance(benchmark, DrawingBenchmark):
        raise ValueError(f"{name!r} is no benchmark of images to draw, but of questions about images")
    return benchmark


def find_understanding(name: str, *files: str | os.PathLike) -> tuple[UnderstandingBenchmark, str]:
    """The benchmark of questions that `name` means, and VLMEvalKit's name of its data set.

    The data set is the one that is `name`, else the one that the names of `files` (D.tsv, or MODEL_D.tsv)
    end with, else the benchmark's usual one. Raises ValueError as `find_benchmark`, and where a file bears
    another benchmark's or data set's name: many have the same columns, and would be scored by wrong rules
    without a word.
    """
    benchmark = find_benchmark(name)
    if not isinstance(benchmark, UnderstandingBenchmark):
        raise ValueError(f"{name!r} is no benchmark of questions about images, but of images to draw")
    by_name = {spelling.casefold(): spelling for spelling in benchmark.datasets}
    # A name that is both the benchmark's and a data set's leaves the choice to the files.
    chosen = name.casefold() != benchmark.name.casefold()
    dataset = by_name[name.casefold()] if chosen else benchmark.datasets[0]
    for file in files:
        named = _dataset_in(pathlib.Path(file).stem)
        if named is None or named == dataset:
            chosen |= named is not None
            continue
        if chosen or named not in benchmark.datasets:
            requested = dataset if chosen else benchmark.name
            raise ValueError(
                f"{file} bears the name of {named}, but {requested} was asked for: "
                f"give --benchmark {named}, or rename the file if its name is wrong"
            )
        dataset, chosen = named, True
    return benchmark, dataset


def _dataset_in(stem: str) -> str | None:
    """The longest data set name that `stem` is or, after an underscore, ends with."""
    names = [dataset for benchmark in UNDERSTANDING_BENCHMARKS for dataset in benchmark.datasets]
    endings = [name for name in names if f"_{stem}".casefold().endswith(f"_{name}".casefold())]
    return max(endings, key=len, default=None)
