"""UniToken (arXiv 2504.04423) in JAX/Flax: one decoder that reads and draws images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unitoken_jax.unitoken import UniToken as UniToken

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`UniToken`, lazily: worker processes import this package, and shall not import jax.

    Not by etils as in the rooms, whose import would be the longest part of a command's first 100 ms, in which
    Ctrl-C cannot be caught.
    """
    if name == "UniToken":
        from unitoken_jax.unitoken import UniToken

        return UniToken
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "UniToken"]
