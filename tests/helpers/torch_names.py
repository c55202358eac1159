"""Our parameters under the names and layouts of the published PyTorch files."""

from collections.abc import Iterator, Mapping

import numpy as np

from unitoken_jax.convert.torch import rules


def disassemble(
    path: str, value: np.ndarray, prefix: Mapping[str, str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameter -> its torch tensors (name, contiguous array): the inverse of `assemble`."""
    before = (prefix or {}).get(path.split("/")[0], "")
    for mapping in rules.tensor_mappings(path, value.shape):
        layer = value if mapping.layer is None else value[mapping.layer]
        yield before + mapping.torch, np.ascontiguousarray(mapping.layout.to_torch(layer))
