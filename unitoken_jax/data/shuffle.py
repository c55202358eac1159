"""Order without memory: shuffles and coin flips that are functions of (seed, place), computed where asked.

A permutation of twenty million rows is never stored: any stretch of it can be computed alone.
"""

from collections.abc import Sequence

import numpy as np

_ROUNDS = 8


def splitmix64(values: np.ndarray, key: int) -> np.ndarray:
    """uint64, as random as `values` and `key` are different (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = (np.asarray(values, np.uint64) + np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def key_of(parts: Sequence[int]) -> int:
    """One 64-bit key of several numbers."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0])


def uniform(places: np.ndarray, key: int) -> np.ndarray:
    """float64 in [0, 1), one for each of `places`."""
    return (splitmix64(places, key) >> np.uint64(11)) * 2.0**-53


def permute_index(places: np.ndarray, count: int, key: int) -> np.ndarray:
    """int64: where a permutation of 0 .. count - 1 sends `places`.

    A Feistel network over the next power of four; what falls beyond `count` is sent on until it falls within.
    """
    half = max(1, -(-(int(count) - 1).bit_length() // 2))
    low, shift = np.uint64((1 << half) - 1), np.uint64(half)
    found = np.array(places, np.uint64)
    todo = np.arange(len(found))
    keys = [key_of((key, i)) for i in range(_ROUNDS)]
    while len(todo):
        values = found[todo]
        left, right = values >> shift, values & low
        for each in keys:
            left, right = right, left ^ (splitmix64(right, each) & low)
        values = (left << shift) | right
        found[todo] = values
        todo = todo[values >= np.uint64(count)]
    return found.astype(np.int64)
