"""A model directory in float16: what is stored so, and that all that reads it takes it as any other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from tests.helpers.tiny_run import write_run
from unitoken_jax import UniToken
from unitoken_jax.checkpoint.half_precision import to_float16
from unitoken_jax.checkpoint.model_directory import load_model, open_model, save_model
from unitoken_jax.config import OptimizerConfig, ParameterGroup
from unitoken_jax.convert.from_torch import ConvertOptions, convert, inspect
from unitoken_jax.convert.to_torch import export
from unitoken_jax.train.loop import train


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "half"
    params, kept = to_float16(tiny_params())
    assert kept == []
    save_model(path, CONFIG, params, tiny_tokenizer())
    return path


def flat(params) -> dict:
    return traverse_util.flatten_dict(dict(params), sep="/")


def dtypes(params, *groups) -> set[str]:
    return {leaf.dtype.name for path, leaf in flat(params).items() if path.split("/")[0] in groups}


NETWORK = ("siglip", "adapter", "decoder")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([65504.0, -1.0, 0.1], "float16"),
        ([0.0, 0.0], "float16"),
        ([1.0, 1e-7], "float16"),  # too small for float16, and for the array
        ([70000.0, 1.0], "float32"),
        ([1e-6, 2e-6], "float32"),
        ([1e-30], "float32"),
        ([np.nan, 1.0], "float32"),
        ([np.inf, 1.0], "float32"),
    ],
)
def test_an_array_that_float16_would_change_stays(values, dtype):
    params = {"a": {"kernel": np.array(values, np.float32)}}
    arrays, kept = to_float16(params)
    assert arrays["a"]["kernel"].dtype == dtype
    assert kept == ([] if dtype == "float16" else ["a/kernel"])
    np.testing.assert_allclose(
        arrays["a"]["kernel"].astype(np.float32), params["a"]["kernel"], rtol=2**-11, atol=2**-25
    )


def test_other_dtypes_are_left_alone():
    arrays, kept = to_float16({"a": jnp.ones(2, jnp.bfloat16), "b": np.ones(2, np.float16)})
    assert (arrays["a"].dtype, arrays["b"].dtype, kept) == (jnp.bfloat16, np.float16, [])


def test_a_directory_has_half_the_bytes_and_says_so(stored, tmp_path):
    save_model(tmp_path / "whole", CONFIG, tiny_params(), tiny_tokenizer())
    sizes = [sum(leaf.nbytes for leaf in flat(load_model(p).params).values()) for p in (tmp_path / "whole",)]
    half = sum(
        np.dtype(leaf.dtype).itemsize * np.prod(leaf.shape)
        for leaf in open_model(stored).params.shapes.values()
    )
    assert sizes == [2 * half]
    lines = [line for line in inspect(stored) if line.startswith((*NETWORK, "vqgan/")) and "float" in line]
    assert {line.split()[-1] for line in lines} == {"float16"}


def test_it_loads_as_what_is_asked_for_with_the_vqgan_in_float32(stored):
    """A code is the nearest of many: distances in float16 would choose others."""
    assert dtypes(load_model(stored).params, *NETWORK) == {"float16"}
    for dtype in ("float32", "bfloat16"):
        params = load_model(stored, dtype=dtype).params
        assert dtypes(params, *NETWORK) == {dtype}
        assert dtypes(params, "vqgan") == {"float32"}
    model = UniToken.load(stored)
    assert dtypes(model.params, *NETWORK, "vqgan") == {"float32"}
    found = flat(load_model(stored, dtype="float32").params)
    for path, value in flat(tiny_params()).items():
        np.testing.assert_array_equal(found[path], value.astype(np.float16).astype(np.float32))


def test_it_is_quantized_as_float32_is(stored):
    params = UniToken.load(stored, quantize="int8").params
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), tiny_params())
    kernel = params["decoder"]["layers"]["0"]["mlp"]["up"]["kernel"]
    expected = rounded["decoder"]["layers"]["mlp"]["up"]["kernel"][0]
    np.testing.assert_allclose(
        kernel.values * np.asarray(kernel.scales), expected, atol=np.abs(expected).max() / 200
    )
    assert dtypes(params, "vqgan") == {"float32"}


def test_it_is_exported_and_converted_back(stored, tmp_path):
    export(stored, tmp_path / "published", vqgan=True)
    folder = tmp_path / "published"
    options = ConvertOptions(image_size=32)
    convert(folder, folder / "SigLIP", folder / "chameleon/tokenizer", tmp_path / "back", options)
    back = flat(load_model(tmp_path / "back", dtype="float32").params)
    for path, value in flat(load_model(stored, dtype="float32").params).items():
        np.testing.assert_array_equal(back[path], value)


@pytest.mark.slow
def test_training_starts_from_it_in_float32(stored, tmp_path):
    config = write_run(tmp_path, init_from=str(stored), steps=1)
    config = dataclasses.replace(
        config, optimizer=OptimizerConfig(groups=(ParameterGroup("siglip|adapter", 1e-3),))
    )
    state = train(config, tmp_path / "run", progress=None)
    assert dtypes(state.tree, "siglip", "adapter", "vqgan") == {"float32"}
    trained = load_model(tmp_path / "run" / "model")
    assert dtypes(trained.params, "decoder") == {"float16"}  # frozen, and so in the dtype it came in
    assert all(np.isfinite(leaf).all() for leaf in flat(trained.params).values())
