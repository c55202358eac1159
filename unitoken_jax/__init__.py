"""UniToken (arXiv 2504.04423) in JAX/Flax: one decoder that reads and draws images."""

from etils import epy

__version__ = "0.1.0"

# Lazy, so that host code (worker processes) can import this package without importing jax.
with epy.lazy_api_imports(globals()):
    from unitoken_jax.unitoken import UniToken
