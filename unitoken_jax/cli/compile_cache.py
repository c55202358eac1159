"""Where compiled programs are kept between runs: the command line's default for jax's persistent cache.

A second `unitoken generate` of the same shapes then starts in seconds. The environment decides:
UNITOKEN_CACHE names another folder, "off" none; jax's own JAX_COMPILATION_CACHE_DIR goes before both.
"""

import os
import pathlib
import platform
import zlib
from collections.abc import MutableMapping

from unitoken_jax.storage.paths import expand_home, user_cache

VARIABLE = "UNITOKEN_CACHE"
JAX_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# Jax keeps what took a second to compile; of a small model that is one program in three.
KEEP_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def enable(environ: MutableMapping[str, str] = os.environ) -> pathlib.Path | None:
    """Makes jax, which must not have been imported yet, keep compiled programs; returns the folder, or None.

    The default is ~/.cache/unitoken_jax/ (XDG_CACHE_HOME moves it), with a folder for each kind of processor:
    programs compiled for one may not run on another, and homes are shared between machines. A
    folder that cannot be written, or a home directory that is not known, is left alone: a cache only saves
    time. Raises ValueError where the environment names a folder in an unknown home directory.
    """
    name = environ.get(VARIABLE, "")
    if environ.get(JAX_VARIABLE):
        environ[JAX_VARIABLE] = expand_home(environ[JAX_VARIABLE])
        return None
    if name.lower() == "off":
        return None
    if name:
        folder = pathlib.Path(expand_home(name))
    elif cache := user_cache(environ):
        folder = cache / "unitoken_jax"
    else:
        return None
    folder = folder.absolute() / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    environ[JAX_VARIABLE] = str(folder)
    for name, value in KEEP_ALL.items():
        environ.setdefault(name, value)
    return folder


def _processor() -> str:
    """Names this kind of processor, with a checksum of what it can do."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"
