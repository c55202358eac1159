"""BENCHMARK FILES -> PREDICTIONS -> SCORES: a benchmark's name, its file and a model directory go in; out
come predictions or images as the benchmark's own scorers take them, a recipe that repeats the run, and a
report.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.evaluate.benchmark import Benchmark
    from unitoken_jax.evaluate.drawing.benchmark import DrawingBenchmark, ScoresError
    from unitoken_jax.evaluate.drawing.run import draw_benchmark
    from unitoken_jax.evaluate.drawing.scorers import import_scores, score_images
    from unitoken_jax.evaluate.registry import BENCHMARKS, find_benchmark
    from unitoken_jax.evaluate.understanding.benchmark import UnderstandingBenchmark
    from unitoken_jax.evaluate.understanding.run import run_benchmark, score_predictions
    from unitoken_jax.evaluate.understanding.table import TableError
