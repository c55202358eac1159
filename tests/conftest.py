"""What all tests share: this checkout in child processes, compiled programs, workers, hypothesis' profiles.

Environment variables that change it: XLA_FLAGS, even an empty one, takes the place of this file's, with which
XLA compiles with little effort; JAX_COMPILATION_CACHE_DIR keeps compiled programs from one session to the
next; HYPOTHESIS_PROFILE=thorough tries many and ever new examples.
"""

import os
import pathlib
import shutil
import tempfile

import hypothesis
import pytest

ROOT = pathlib.Path(__file__).parents[1]
# The bucket's tests, since the client for gs:// keeps the host that it first saw; then what takes minutes.
FIRST = ("test_bucket.py", "test_notebooks.py", "test_mesh.py", "test_failures.py")
WORKERS = 2  # A JAX process compiles with threads of its own, so that more help only on many cores.

# Whatever is installed: a child process shall run the code that is tested, and find `tests.helpers`.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])

# Tests wait for the compiler more than for anything else, and their programs run for milliseconds. Without
# LLVM's optimizations and the emitters of fused loops, a small train step compiles in a seventh of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

# One persistent cache a session, for all workers and child processes: this module is imported before jax, and
# the variables are inherited. A program's key holds XLA's flags and the devices, so that nothing is mixed up.
_session_cache = None
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    _session_cache = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="unitoken-test-xla-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

hypothesis.settings.register_profile("quick", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("thorough", max_examples=500, deadline=None)
hypothesis.settings.register_profile("fuzz", max_examples=1500, deadline=None)  # for tests/fuzz
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_unconfigure(config):
    """Removes the session's compiled programs, in the process that made the folder."""
    if _session_cache:
        shutil.rmtree(_session_cache, ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Two workers for the whole suite, none where files or tests are named: one process is sooner done."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    config.option.dist = "loadfile"  # a file's fixtures are made in one worker
    config.option.loadscopereorder = False  # but in the order of `pytest_collection_modifyitems`
    return WORKERS


def pytest_collection_modifyitems(items):
    """The longest files come first, so that no worker begins one when the other has nothing left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: (order.get(item.path.name, len(FIRST)), item.path not in slow))
