"""The whole path on a small model: minutes and a seed go in, out come a data set, a trained model directory,
its scores on held-out questions and prompts, and sheets to look at.
"""

import importlib

# Each public name and the module that holds it, which is imported when the name is first asked for.
_MODULES = {
    "Quickstart": "run",
    "Results": "evaluate",
    "Stage": "recipe",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
