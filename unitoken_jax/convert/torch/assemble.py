"""Tensors by torch name -> parameters by our path: every tensor is used, left out by rule, or a problem."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from einops import rearrange

from unitoken_jax.convert.torch import rules
from unitoken_jax.convert.torch.report import ProblemCollector, Tensor

FLOATS = tuple(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class ParameterPiece:
    """What one torch tensor gives of a parameter: the layer `mapping.layer`, or (None) all of it."""

    mapping: rules.TensorMapping
    tensor: Tensor

    def read(self) -> np.ndarray:
        """The array in our layout, in the file's dtype: mostly a transposed view of the mapped file."""
        return self.mapping.layout.to_ours(_collapse(self.tensor.read(), self.mapping.shape))


@dataclasses.dataclass(frozen=True, eq=False)
class Parameter:
    """One of our parameters, not read yet."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype  # as stored; where its pieces have several, the first one's
    pieces: tuple[ParameterPiece, ...]


def assemble(
    tensors: Mapping[str, Tensor],
    expected: Shapes,
    report: ProblemCollector,
    prefix: Mapping[str, str] | None = None,
    one_dtype: bool = True,
) -> dict[str, Parameter]:
    """Parameters of `expected` (our path -> shape) out of `tensors` (by torch name).

    Args:
      report: gets what is missing, surplus, misshapen or no float tensor; the parameters it concerns are left
        out.
      prefix: what stands before a network's torch names here: {"siglip": "vit."}.
      one_dtype: a tensor of another dtype than most of its network is a problem too.
    """
    parameters, used = {}, set()
    for path, shape in expected.items():
        network_prefix = (prefix or {}).get(path.split("/")[0], "")
        pieces = []
        mappings = rules.tensor_mappings(path, tuple(shape))
        for mapping in mappings:
            name = network_prefix + mapping.torch
            tensor = tensors.get(name)
            if tensor is None:
                report.add("missing", f"{name} {mapping.shape}, for {path}")
                continue
            used.add(name)
            if _fits(tensor, mapping, report):
                pieces.append(ParameterPiece(mapping, tensor))
        if pieces and len(pieces) == len(mappings):
            parameters[path] = Parameter(path, tuple(shape), pieces[0].tensor.dtype, tuple(pieces))
    for name in sorted(tensors.keys() - used):
        if reason := rules.ignored(name):
            report.ignore(reason, name)
        else:
            tensor = tensors[name]
            file = pathlib.Path(tensor.file).name
            report.add("surplus", f"{name} {tensor.shape} in {file}: no rule uses or ignores it")
    if one_dtype:
        _check_dtypes(parameters, report)
    return parameters


def _check_dtypes(parameters: Mapping[str, Parameter], report: ProblemCollector) -> None:
    """Reports tensors of another dtype than most of their network, which is no one's intention.

    The VQ-GAN's are stored as they come.
    """
    networks: dict[str, list[ParameterPiece]] = collections.defaultdict(list)
    for path, parameter in parameters.items():
        networks[path.split("/")[0]] += parameter.pieces
    networks.pop("vqgan", None)
    for network, pieces in networks.items():
        ((usual, _),) = collections.Counter(piece.tensor.dtype for piece in pieces).most_common(1)
        for tensor in (piece.tensor for piece in pieces if piece.tensor.dtype != usual):
            report.add(
                "dtype",
                f"{tensor.name} in {pathlib.Path(tensor.file).name} is {tensor.dtype}; the rest of {network} "
                f"is {usual} (--dtype stores all in one)",
            )


def _fits(tensor: Tensor, mapping: rules.TensorMapping, report: ProblemCollector) -> bool:
    """Whether `tensor` has the dtype and shape that are expected; if not, `report` says why."""
    file = pathlib.Path(tensor.file).name
    if tensor.dtype not in FLOATS:
        report.add("dtype", f"{tensor.name} in {file} is {tensor.dtype}; expected a float type")
        return False
    if tensor.shape == mapping.shape:
        return True
    if _per_head(tensor.shape, mapping):
        rows = rearrange(tensor.read(), "(shard head) dim -> shard head dim", shard=mapping.shape[0])
        if np.array_equal(rows, np.broadcast_to(rows[:, :1], rows.shape)):
            return True
        report.add("shape", f"{tensor.name} in {file} has a row a head, which differ within a shard")
        return False
    report.add(
        "shape", f"{tensor.name} in {file} is {tensor.shape}; expected {mapping.shape}, for {mapping.path}"
    )
    return False


def _per_head(shape: tuple[int, ...], mapping: rules.TensorMapping) -> bool:
    """Whether this is a QK-norm with a row a head, as `transformers` writes it, instead of a row a shard."""
    is_norm = "/q_norm/" in mapping.path or "/k_norm/" in mapping.path
    return is_norm and len(shape) == 2 and shape[1] == mapping.shape[1] and shape[0] % mapping.shape[0] == 0


def _collapse(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One row a shard of a QK-norm with one row a head (`_fits` has seen that they are equal)."""
    return value if value.shape == shape else value[:: value.shape[0] // shape[0]]
