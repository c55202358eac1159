"""Order without memory: shuffles and random numbers that are functions of (seed, index).

A permutation of twenty million rows is never stored: any slice of it can be computed alone.
"""

from collections.abc import Sequence

import numpy as np

_ROUNDS = 8


def splitmix64(values: np.ndarray, key: int) -> np.ndarray:
    """uint64[n]: a hash of each of `values` uint64[n] with `key`, by the finaliser of splitmix64."""
    with np.errstate(over="ignore"):
        mixed = (np.asarray(values, np.uint64) + np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def key_of(parts: Sequence[int]) -> int:
    """A 64-bit key of several numbers."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0])


def uniform(values: np.ndarray, key: int) -> np.ndarray:
    """float64[n] in [0, 1), evenly distributed: a function of each of `values` int[n] and `key`."""
    return (splitmix64(values, key) >> np.uint64(11)) * 2.0**-53


def permute_index(indices: np.ndarray, count: int, key: int) -> np.ndarray:
    """int64[n]: where a permutation of 0 .. count - 1, which `key` decides, sends `indices` int[n].

    A Feistel network over the next power of four; what falls beyond `count` is sent on until it falls within.
    """
    half = max(1, -(-(int(count) - 1).bit_length() // 2))
    low, shift = np.uint64((1 << half) - 1), np.uint64(half)
    permuted = np.array(indices, np.uint64)
    todo = np.arange(len(permuted))
    keys = [key_of((key, i)) for i in range(_ROUNDS)]
    while len(todo):
        values = permuted[todo]
        left, right = values >> shift, values & low
        for round_key in keys:
            left, right = right, left ^ (splitmix64(right, round_key) & low)
        values = (left << shift) | right
        permuted[todo] = values
        todo = todo[values >= np.uint64(count)]
    return permuted.astype(np.int64)
