"""What is known of other processes, for tests that start and kill them."""

import pathlib


def is_running(process: str) -> bool:
    """Whether the process of this id is there, and not only waiting for someone to ask how it ended."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
