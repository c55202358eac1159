"""What a training step takes, before it runs: a config and a topology go in, memory, FLOPs, traffic and an
estimate of the time come out, read from the program that the real compiler makes of the step.
"""

import importlib

# Each public name and the module that holds it, which is imported when the name is first asked for.
_MODULES = {
    "Cost": "cost",
    "Memory": "memory",
    "Plan": "plan",
    "Time": "estimate",
    "count_cost": "cost",
    "estimate_time": "estimate",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
