"""The whole path on a small model: minutes and a seed go in, out come a data set, a trained model directory,
its scores on held-out questions and prompts, and sheets to look at.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.quickstart.evaluate import Results
    from unitoken_jax.quickstart.recipe import Stage
    from unitoken_jax.quickstart.run import Quickstart
