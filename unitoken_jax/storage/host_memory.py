"""How much memory this machine has left."""

import pathlib
import re

MEMINFO = pathlib.Path("/proc/meminfo")


def free_host_bytes(meminfo: pathlib.Path = MEMINFO) -> int | None:
    """Bytes that new programs can have without swapping, as Linux estimates them; None on other systems.

    `meminfo` is the kernel's file, in which the line "MemAvailable: 123 kB" says it.
    """
    try:
        text = meminfo.read_text(encoding="ascii")
    except OSError:
        return None
    available = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(available[1]) * 1024 if available else None
