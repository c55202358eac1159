"""The paper's Tables 5 and 6 with the quickstart's model: seeds go in, out come scores of each of the tables'
models and the paper's findings beside those made here.
"""

import importlib

# Each public name and the module that holds it, which is imported when the name is first asked for.
_MODULES = {
    "Ablation": "run",
    "CELLS": "cells",
    "Cell": "cells",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
