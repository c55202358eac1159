"""The models inside the package, for tests that need a trained one; until they are there, tiny ones."""

import pathlib

from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax import pretrained
from unitoken_jax.checkpoint.half_precision import to_float16
from unitoken_jax.checkpoint.model_directory import is_model_dir, save_model


def put_tiny_models(folder: pathlib.Path) -> None:
    """Puts tiny models into a copy `folder` of unitoken_jax/pretrained, where it has none."""
    for name in pretrained.NAMES:
        if not is_model_dir(folder / name):
            save_model(folder / name, CONFIG, to_float16(tiny_params())[0], tiny_tokenizer())
