"""Files to batches: in come the sources of a DataConfig (JSON, ArrayRecord, TFDS), out comes an endless
stream of packed batches whose whole state is one row number.
"""

import importlib

# Each public name and the module that holds it, which is imported when the name is first asked for.
_MODULES = {
    "Codes": "codes",
    "CodesError": "code_shards",
    "Index": "index",
    "Loader": "loader",
    "Source": "sources",
    "Validation": "loader",
    "open_index": "index",
    "read_codes": "codes",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
