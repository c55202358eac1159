"""Parameters in half the bytes, to be stored: float16 where it changes nothing but their last places."""

from collections.abc import Mapping

import numpy as np
from flax import traverse_util
from flax.core import meta

MAX_ERROR = 2.0**-11  # of an array's norm: half a unit in the last of the 11 places of float16


def to_float16(params: Mapping) -> tuple[dict, list[str]]:
    """(`params` as numpy arrays, float32 ones in float16; the paths of those that stay in float32).

    An array stays where float16 would change it by more than MAX_ERROR of its norm: a value is beyond 65504
    or no number, or most lie below 6e-5, where float16 has ever fewer places. What reads the model directory
    that `save_model` makes of the result casts it as it casts any other: `load_model`.
    """
    arrays, kept = {}, []
    for path, leaf in traverse_util.flatten_dict(meta.unbox(dict(params)), sep="/").items():
        array = arrays[path] = np.asarray(leaf)
        if array.dtype != np.float32:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            half = array.astype(np.float16)
            error = np.linalg.norm((half - array).astype(np.float64))
            fits = error <= MAX_ERROR * np.linalg.norm(array.astype(np.float64))
        if fits:
            arrays[path] = half
        else:
            kept.append(path)
    return traverse_util.unflatten_dict(arrays, sep="/"), kept
