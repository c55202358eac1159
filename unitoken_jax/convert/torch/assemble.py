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
class ParamPart:
    """What one torch tensor gives of a parameter: the layer `place.layer`, or (None) all of it."""

    place: rules.Place
    tensor: Tensor

    def read(self) -> np.ndarray:
        """The array in our layout, in the file's dtype: mostly a transposed view of the mapped file."""
        return self.place.layout.to_ours(_collapse(self.tensor.read(), self.place.shape))


@dataclasses.dataclass(frozen=True, eq=False)
class Parameter:
    """One of our parameters, not read yet."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype  # as stored; where its pieces have several, the first one's
    pieces: tuple[ParamPart, ...]


def assemble(
    tensors: Mapping[str, Tensor],
    expected: Shapes,
    report: ProblemCollector,
    prefix: Mapping[str, str] | None = None,
    one_dtype: bool = True,
) -> dict[str, Parameter]:
    """Parameters of `expected` (our path -> shape) out of `tensors` (by torch name).

    `prefix` is what stands before a network's torch names here: {"siglip": "vit."}. What is missing, surplus,
    misshapen or no float tensor goes to `report`; the parameters it concerns are left out. So does, where
    `one_dtype`, a tensor of another dtype than most of its network.
    """
    made, used = {}, set()
    for path, shape in expected.items():
        before = (prefix or {}).get(path.split("/")[0], "")
        parts = []
        places = rules.places(path, tuple(shape))
        for place in places:
            name = before + place.torch
            tensor = tensors.get(name)
            if tensor is None:
                report.add("missing", f"{name} {place.shape}, for {path}")
                continue
            used.add(name)
            if _fits(tensor, place, report):
                parts.append(ParamPart(place, tensor))
        if parts and len(parts) == len(places):
            made[path] = Parameter(path, tuple(shape), parts[0].tensor.dtype, tuple(parts))
    for name in sorted(tensors.keys() - used):
        if reason := rules.ignored(name):
            report.ignore(reason, name)
        else:
            tensor = tensors[name]
            file = pathlib.Path(tensor.file).name
            report.add("surplus", f"{name} {tensor.shape} in {file}: no rule uses or ignores it")
    if one_dtype:
        _check_dtypes(made, report)
    return made


def _check_dtypes(made: Mapping[str, Parameter], report: ProblemCollector) -> None:
    """Another dtype than most of the network's is no one's intention; the VQ-GAN's is stored as it comes."""
    networks: dict[str, list[ParamPart]] = collections.defaultdict(list)
    for path, parameter in made.items():
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


def _fits(tensor: Tensor, place: rules.Place, report: ProblemCollector) -> bool:
    file = pathlib.Path(tensor.file).name
    if tensor.dtype not in FLOATS:
        report.add("dtype", f"{tensor.name} in {file} is {tensor.dtype}; expected a float type")
        return False
    if tensor.shape == place.shape:
        return True
    if _per_head(tensor.shape, place):
        rows = rearrange(tensor.read(), "(shard head) dim -> shard head dim", shard=place.shape[0])
        if np.array_equal(rows, np.broadcast_to(rows[:, :1], rows.shape)):
            return True
        report.add("shape", f"{tensor.name} in {file} has a row a head, which differ within a shard")
        return False
    report.add(
        "shape", f"{tensor.name} in {file} is {tensor.shape}; expected {place.shape}, for {place.path}"
    )
    return False


def _per_head(shape: tuple[int, ...], place: rules.Place) -> bool:
    """Whether this is a QK-norm with a row a head, as `transformers` writes it, instead of a row a shard."""
    is_norm = "/q_norm/" in place.path or "/k_norm/" in place.path
    return is_norm and len(shape) == 2 and shape[1] == place.shape[1] and shape[0] % place.shape[0] == 0


def _collapse(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One row a shard of a QK-norm with one row a head (`_fits` has seen that they are equal)."""
    return value if value.shape == shape else value[:: value.shape[0] // shape[0]]
