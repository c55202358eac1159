"""Many users at one model: requests and their events, the scheduler and the engine that runs them together,
and the HTTP server before it.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.serve.requests import EngineLimits, ImageRequest, TextRequest
