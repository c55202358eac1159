"""What every test shares: child processes that import this checkout."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]

# Whatever is installed: a child process shall run the code that is tested, and find `tests.helpers`.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
