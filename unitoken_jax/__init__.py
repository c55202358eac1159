"""UniToken (arXiv 2504.04423) in JAX/Flax: one decoder that reads and draws images."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Lazy, so that host code (worker processes) can import this package without importing jax.
    if name == "UniToken":
        from unitoken_jax.unitoken import UniToken

        return UniToken
    raise AttributeError(f"module 'unitoken_jax' has no attribute {name!r}")
