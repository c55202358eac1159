"""Files on a local disk or behind a URL (gs://bucket/...): in comes a path, out comes a file that is read by
byte range, or one written whole or not at all. Nothing here knows what the files hold.
"""

import importlib

# Each public name and the module that holds it, which is imported when the name is first asked for.
_MODULES = {
    "FileSlice": "paths",
    "InMemoryFile": "paths",
    "RandomFile": "paths",
    "absolute": "paths",
    "as_path": "paths",
    "atomic_folder": "atomic",
    "atomic_write": "atomic",
    "expand": "paths",
    "is_remote": "paths",
    "write_text": "atomic",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
