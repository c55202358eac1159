"""The paper's benchmarks: their names, files, columns and families of rules, and what the paper reports.

Columns and data set names are VLMEvalKit's (github.com/open-compass/VLMEvalKit); numbers are Tables 3, 4
and 6 of arXiv 2504.04423.
"""

import dataclasses
import difflib
import os
import pathlib
from typing import Literal

Family = Literal["choice", "circular", "mmmu", "mme", "hallusion", "ocr", "mathvista", "mmvet"]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """An understanding benchmark.

    `datasets`: VLMEvalKit's names of its files, the usual one first; `columns`: needed besides `index`,
    `question` and `image`; `per_point`: what its score is divided by to lie in 0..100; `paper`: the scores
    of UniToken after stages II and III, None where the paper has none.
    """

    name: str
    datasets: tuple[str, ...]
    family: Family
    group: Literal["General", "TextRead"]
    columns: tuple[str, ...]
    paper: tuple[float | None, float | None]
    per_point: float = 1.0

    @property
    def needs_judge(self) -> bool:
        """Whether the benchmark's own score needs an LLM judge."""
        return self.family in ("mathvista", "mmvet")


_CHOICE = ("A", "B", "answer")
BENCHMARKS = (
    Benchmark("MMMU", ("MMMU_DEV_VAL",), "mmmu", "General", _CHOICE, (34.2, 32.8)),
    Benchmark(
        "MMBench_CN",
        ("MMBench_DEV_CN", "MMBench_DEV_CN_V11", "MMBench_TEST_CN", "MMBench_TEST_CN_V11"),
        "circular",
        "General",
        _CHOICE,
        (64.1, 62.0),
    ),
    Benchmark(
        "MMBench_EN",
        ("MMBench_DEV_EN", "MMBench_DEV_EN_V11", "MMBench_TEST_EN", "MMBench_TEST_EN_V11"),
        "circular",
        "General",
        _CHOICE,
        (70.3, 71.1),
    ),
    Benchmark("MME", ("MME",), "mme", "General", ("image_path", "answer", "category"), (None, None), 28.0),
    Benchmark("MMStar", ("MMStar",), "choice", "General", _CHOICE, (45.2, 46.1)),
    Benchmark("SEED", ("SEEDBench_IMG",), "choice", "General", _CHOICE, (70.3, 69.9)),
    Benchmark(
        "MathVista",
        ("MathVista_MINI",),
        "mathvista",
        "General",
        ("answer", "question_type", "answer_type", "answer_option", "choices"),
        (41.6, 38.5),
    ),
    Benchmark(
        "HallusionBench", ("HallusionBench",), "hallusion", "General", ("answer", "l2-category"), (49.6, 57.8)
    ),
    Benchmark("AI2D", ("AI2D_TEST", "AI2D_TEST_NO_MASK"), "choice", "TextRead", _CHOICE, (67.6, 68.7)),
    Benchmark("OCRBench", ("OCRBench",), "ocr", "TextRead", ("answer", "category"), (634, 757), 10.0),
    Benchmark("MMVet", ("MMVet",), "mmvet", "TextRead", ("answer",), (None, None)),
)
GROUPS = ("General", "TextRead")
# Table 6's first and third rows (2M + 2M and 10M + 10M examples), models without any-res images.
PAPER_GROUPS = {"General": (49.8, 53.3), "TextRead": (42.9, 49.5)}


def has_answers(dataset: str) -> bool:
    """Whether the public file of `dataset` holds answers: MMBench's test files go to its server."""
    return not dataset.startswith("MMBench_TEST")


def find(name: str) -> tuple[Benchmark, str]:
    """The benchmark and VLMEvalKit's data set name that `name`, either of the two, means.

    Raises ValueError listing what there is for an unknown name.
    """
    wanted = name.casefold()
    for benchmark in BENCHMARKS:
        if wanted == benchmark.name.casefold():
            return benchmark, benchmark.datasets[0]
        for dataset in benchmark.datasets:
            if wanted == dataset.casefold():
                return benchmark, dataset
    known = [known for benchmark in BENCHMARKS for known in (benchmark.name, *benchmark.datasets)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    names = ", ".join(benchmark.name for benchmark in BENCHMARKS)
    raise ValueError(
        f"unknown benchmark {name!r}.{hint} Known: {names}, or VLMEvalKit's data set names; for images: "
        "GenEval, T2I-CompBench++, quickstart"
    )


def find_for(name: str, *files: str | os.PathLike) -> tuple[Benchmark, str]:
    """`find(name)`; the data set is the one that the names of `files` (D.tsv, or MODEL_D.tsv) end with.

    Raises ValueError as `find`, and where a file bears another benchmark's or data set's name: many have the
    same columns, and would be scored by wrong rules without a word.
    """
    benchmark, dataset = find(name)
    chosen = name.casefold() != benchmark.name.casefold()  # as a data set, not as a benchmark
    for file in files:
        named = _dataset_in(pathlib.Path(file).stem)
        if named is None or named == dataset:
            chosen |= named is not None
            continue
        if chosen or named not in benchmark.datasets:
            wanted = dataset if chosen else benchmark.name
            raise ValueError(
                f"{file} bears the name of {named}, but {wanted} was asked for: give --benchmark {named}, or "
                "rename the file if its name is wrong"
            )
        dataset, chosen = named, True
    return benchmark, dataset


def _dataset_in(stem: str) -> str | None:
    """The longest data set name that `stem` is or, after an underscore, ends with."""
    names = [dataset for benchmark in BENCHMARKS for dataset in benchmark.datasets]
    ended = [name for name in names if f"_{stem}".casefold().endswith(f"_{name}".casefold())]
    return max(ended, key=len, default=None)
