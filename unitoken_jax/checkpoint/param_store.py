"""Parameters written and read piece by piece, for models larger than memory: Orbax checkpoints.

Each parameter is a zarr array of its own, as Orbax writes without OCDBT, in chunks of at most CHUNK_BYTES.
They grow in a folder beside the checkpoint; `publish` has Orbax write its own metadata and adopt them.
A journal names the pieces that are complete, so that a later call goes on where an interrupted one was.
"""

import contextlib
import dataclasses
import json
import math
import mmap
import os
import pathlib
import re
import shutil
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.model.quantize import QuantizedKernel, scale_groups, unpack_int4
from unitoken_jax.storage.paths import is_remote, literal_path

CHUNK_BYTES = 64 * 2**20
SMALL_BYTES = 2**20  # arrays up to this have a single chunk, not one a layer
_TILE = (256, 128)  # of a transposed copy, rows and columns of the source: fits a cache
_JOURNAL, _ARRAYS = "journal.jsonl", "arrays"
_METADATA = "_METADATA"  # of an Orbax checkpoint: the paths of its arrays
# In it: true where every chunk was written, those of zeros too; else a missing chunk means zeros.
_COMPLETE = "store_array_data_equal_to_fill_value"
_DAMAGED = "the model directory is damaged: copy it again from where it is whole, or make it again"
_STATUS = re.compile(r"[A-Z_]+: ")  # how tensorstore's own errors begin
_ALIGNMENT = 64  # bytes
VALUES, SCALES = "/values", "/scales"  # below a quantized kernel's path: its two arrays


class ParamStore:
    """The folder `folder`: what was written to it for the same `purpose`, else made anew and empty.

    `arrays` by path ("decoder/norm/scale"). `purpose` is any JSON value that says what the values depend on.
    Threads may write different pieces at the same time.
    """

    def __init__(self, folder: pathlib.Path, arrays: Mapping[str, "ArraySpec"], purpose):
        self.folder, self.arrays = folder, dict(arrays)
        self._journal = folder / _JOURNAL
        self._lock = threading.Lock()
        self._open: dict[str, Any] = {}
        self.done = self._read_journal(json.loads(json.dumps(purpose)))

    def _read_journal(self, purpose) -> dict[str, object]:
        """What is complete: {name: whatever `note` was given}."""
        lines = []
        if self._journal.is_file():
            for line in self._journal.read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    break  # the last line of a killed run
        if not lines or lines[0] != purpose:
            shutil.rmtree(self.folder, ignore_errors=True)
            (self.folder / _ARRAYS).mkdir(parents=True)
            lines = [purpose]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self._journal.write_text(text, encoding="utf-8")
        return dict(lines[1:])

    def note(self, name: str, value=True) -> None:
        """Marks `name` as complete, with a JSON value."""
        with self._lock:
            self.done[name] = value
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, value]) + "\n")

    def write(self, path: str, layer: int | None, value: np.ndarray) -> None:
        """Layer `layer` of a parameter, or (None) all of it; cast to the parameter's dtype, in blocks."""
        target = self._array(path) if layer is None else self._array(path)[layer]
        for rows in self.blocks(path):
            block = value[rows]
            if block.dtype != self.arrays[path].dtype or not block.flags.c_contiguous:
                block = contiguous(block, self.arrays[path].dtype)
            target[rows].write(block, can_reference_source_data_indefinitely=True).result()
        self.note(_name(path, layer))

    def read(self, path: str, layer: int | None, rows: slice) -> np.ndarray:
        """A block (one of `blocks`) of a piece, as it is on disk."""
        array = self._array(path) if layer is None else self._array(path)[layer]
        return array[rows].read().result()

    def is_done(self, path: str, layer: int | None) -> bool:
        """Whether this piece of a parameter was written, now or by an earlier call."""
        return _name(path, layer) in self.done

    def blocks(self, path: str) -> Iterator[slice]:
        """The slices of a piece's first axis that make a chunk each."""
        spec = self.arrays[path]
        total, rows = spec.piece_shape[0], spec.chunks[-len(spec.piece_shape)]
        return (slice(first, min(first + rows, total)) for first in range(0, total, rows))

    def _array(self, path: str) -> Any:
        """The tensorstore array of a parameter, opened once."""
        import tensorstore

        with self._lock:
            if path not in self._open:
                spec = self.arrays[path]
                zarr = {
                    "driver": "zarr",
                    "kvstore": {"driver": "file", "path": str(self._array_folder(path))},
                    "context": {"file_io_sync": False},  # `publish` syncs once
                    "metadata": {"shape": spec.shape, "chunks": spec.chunks, "compressor": None},
                    "dtype": spec.dtype.name,
                    "store_data_equal_to_fill_value": True,  # so that a missing file is damage (`_COMPLETE`)
                }
                self._open[path] = tensorstore.open(zarr, open=True, create=True).result()
            return self._open[path]

    def _array_folder(self, path: str) -> pathlib.Path:
        return literal_path(self.folder) / _ARRAYS / path.replace("/", ".")

    def publish(self, checkpoint: pathlib.Path) -> None:
        """Makes the Orbax checkpoint `checkpoint` of all arrays. They and the journal are gone from here."""
        import orbax.checkpoint as ocp
        from flax.traverse_util import unflatten_dict

        class Adopt(ocp.type_handlers.NumpyHandler):
            """Saves an array by moving what is written already."""

            async def serialize(self, values, infos, args=None):
                for value, info in zip(values, infos):
                    await info.await_path_creation()
                    os.replace(value.folder, info.path)
                return []

        tree = {
            path: _Written(spec.shape, spec.dtype, self._array_folder(path))
            for path, spec in self.arrays.items()
        }
        registry = ocp.type_handlers.create_type_handler_registry(
            (_Written, Adopt()), (jax.Array, ocp.type_handlers.ArrayHandler())
        )  # asked for jax.Array's too, though nothing here is one
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
        handler.finalize = lambda directory: None  # it would look for OCDBT files to merge, and warn
        self._open.clear()
        os.sync()
        self._journal.unlink()  # cut short from here on, it begins anew
        with ocp.Checkpointer(handler) as checkpointer:
            target = literal_path(checkpoint.parent) / checkpoint.name
            checkpointer.save(target, ocp.args.PyTreeSave(unflatten_dict(tree, sep="/")))
        shutil.rmtree(self.folder / _ARRAYS)


class StoredParams:
    """The arrays of an Orbax checkpoint, written with OCDBT (training) or without (conversion), by path.

    `checkpoint` is a path of `storage.as_path`. `shapes` says what there is, flat, `tree` nested: leaves with
    shape and dtype, and of a quantized kernel those of the kernel that it stands for, in int8 or int4.
    `quantization` is that dtype's name; None: no kernel is quantized. Where chunks span layers, small arrays
    and the last large one are kept in memory, nothing else. Several threads may read.
    """

    def __init__(self, checkpoint: pathlib.Path):
        from flax.traverse_util import unflatten_dict

        self._checkpoint = checkpoint
        self._arrays = _open_arrays(checkpoint)
        self.shapes, self.quantization = _with_whole_kernels(
            {
                path: jax.ShapeDtypeStruct(array.shape, array.dtype.numpy_dtype)
                for path, array in self._arrays.items()
            }
        )
        self.tree = unflatten_dict(self.shapes, sep="/")
        self._lock = threading.Lock()
        self._kept: dict[str, np.ndarray] = {}

    def read(self, path: str, layer: int | None = None) -> Any:
        """A parameter as stored, numpy's, or index `layer` of its first axis; of a quantized kernel a
        QuantizedKernel of such arrays. They are the caller's own."""
        if path in self._arrays:
            return self._read_array(path, layer)
        values, scales = (self._read_array(path + name, layer) for name in (VALUES, SCALES))
        if values.dtype == np.uint8:
            values = unpack_int4(values)
        return QuantizedKernel(values, scales)  # type: ignore[arg-type] # not on a device yet

    def _read_array(self, path: str, layer: int | None) -> np.ndarray:
        """A stored array, or index `layer` of its first axis. ValueError where a file is missing or cut."""
        array = self._arrays[path]
        if (value := self._read_files(array, path, layer)) is not None:
            return value
        with naming_damage(self._checkpoint):
            if layer is None:
                return array.read().result()
            if array.chunk_layout.read_chunk.shape[0] == 1:
                return array[layer].read().result()
            with self._lock:
                if path not in self._kept:
                    small = {name: kept for name, kept in self._kept.items() if kept.nbytes <= SMALL_BYTES}
                    self._kept = small | {path: array.read().result()}
                return self._kept[path][layer].copy()

    def _read_files(self, array: Any, path: str, layer: int | None) -> np.ndarray | None:
        """As `_read_array`, straight from the files; None where they hold anything but rows as in memory, or
        one is missing, of which tensorstore knows what it means.

        Of what `ParamStore` writes every chunk is such rows. Tensorstore would copy them once, and jax, for
        which their address is odd, again: three times the processor's time. A large array in a file of its
        own is not copied at all.
        """
        zarr, folder = array.spec().to_json()["metadata"], self._checkpoint / path.replace("/", ".")
        shape, chunks = array.shape, zarr["chunks"]
        if layer is not None:
            shape, chunks = shape[1:], chunks[1:]
        ahead = len(array.shape) - len(shape)
        rest = (zarr["compressor"], zarr["filters"], zarr["order"], zarr.get("dimension_separator", "."))
        whole = (
            rest == (None, None, "C", ".")
            and zarr["chunks"][:ahead] == [1] * ahead
            and list(shape[1:]) == chunks[1:]
        )
        if is_remote(self._checkpoint) or not (whole and shape and (folder / ".zarray").is_file()):
            return None
        dtype, rows = array.dtype.numpy_dtype, chunks[0]
        numbers = range(-(-shape[0] // rows))
        indices = [[layer] * ahead + [number] + [0] * (len(shape) - 1) for number in numbers]
        files = [folder / ".".join(map(str, index)) for index in indices]
        try:
            if len(files) == 1 and math.prod(shape) * dtype.itemsize > SMALL_BYTES:
                return _mapped(files[0], shape, dtype)
            value = _aligned(shape, dtype)
            for number, file in enumerate(files):
                _read_into(file, value[number * rows : (number + 1) * rows])
        except FileNotFoundError:
            return None
        return value

    def read_below(self, prefix: str, layer: int | None = None) -> dict:
        """Nested dicts of all parameters below `prefix` ("decoder/layers"), or of one of their layers."""
        from flax.traverse_util import unflatten_dict

        paths = [path for path in self.shapes if path.startswith(prefix + "/")]
        flat = {path.removeprefix(prefix + "/"): self.read(path, layer) for path in paths}
        return unflatten_dict(flat, sep="/")


def _open_arrays(checkpoint: pathlib.Path) -> dict[str, Any]:
    """The tensorstore arrays of an Orbax checkpoint, in either of its formats, by path.

    Orbax itself takes half a second to be imported and to say the same. Raises FileNotFoundError or
    ValueError, which name the checkpoint, for what is none.
    """
    import tensorstore

    metadata = checkpoint / _METADATA
    try:
        values = json.loads(metadata.read_text(encoding="utf-8"))
        leaves = values["tree_metadata"].values()
        paths = [[key["key"] for key in leaf["key_metadata"]] for leaf in leaves]
        fill = {"fill_missing_data_reads": not values.get(_COMPLETE)}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{metadata} names no arrays ({error}): the checkpoint is damaged") from error
    store: dict[str, Any] = {"driver": "file", "path": f"{checkpoint}/"}
    if is_remote(checkpoint):
        store = tensorstore.KvStore.Spec(urllib.parse.quote(f"{checkpoint}/", safe=":/")).to_json()
    ocdbt = (checkpoint / "manifest.ocdbt").exists()
    context = tensorstore.Context()

    def open_array(path: list[str]) -> Any:
        name = ".".join(path) + "/"
        inside = {"driver": "ocdbt", "base": store, "path": name}
        kvstore = inside if ocdbt else store | {"path": store["path"] + name}
        zarr = {"driver": "zarr", "kvstore": kvstore} | fill
        return tensorstore.open(zarr, open=True, read=True, context=context)

    opening = {"/".join(path): open_array(path) for path in paths}
    with naming_damage(checkpoint):
        return {path: array.result() for path, array in opening.items()}


@contextlib.contextmanager
def naming_damage(checkpoint: pathlib.Path) -> Iterator[None]:
    """Makes a ValueError of tensorstore's, which Orbax wraps, one that names `checkpoint` and what to do."""
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if not (isinstance(cause, ValueError) and _STATUS.match(str(cause))):
            raise
        reason = str(cause).partition(" [")[0]  # what follows are tensorstore's settings
        raise ValueError(f"{checkpoint} cannot be read ({reason}): {_DAMAGED}") from error


def quantized_arrays(path: str, shape: tuple[int, ...], bits: int) -> dict[str, "ArraySpec"]:
    """The two arrays in which the stack of kernels [L, in, out] at `path` is stored in 8 or 4 bits: values
    int8[L, in, out], or (`pack_int4`) uint8[L, in / 2, out], and scales float32[L, groups, out]. ValueError
    where 4 bits' groups do not divide the inputs."""
    layers, inputs, outputs = shape
    groups, rows = scale_groups(inputs, bits), inputs * bits // 8
    return {
        path + VALUES: ArraySpec((layers, rows, outputs), np.dtype(np.uint8 if bits == 4 else np.int8), True),
        path + SCALES: ArraySpec((layers, groups, outputs), np.dtype(np.float32), True),
    }


def _with_whole_kernels(stored: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """`stored`, leaves by path, with one leaf for the arrays of a quantized kernel; and its dtype's name."""
    shapes: dict[str, Any] = {}
    quantization = None
    for path, leaf in stored.items():
        if path.endswith(VALUES):
            bits = 4 if leaf.dtype == np.uint8 else 8
            quantization, (*layers, rows, outputs) = f"int{bits}", leaf.shape
            shape = (*layers, rows * 8 // bits, outputs)
            shapes[path.removesuffix(VALUES)] = jax.ShapeDtypeStruct(shape, jnp.dtype(quantization))
        elif path.removesuffix(SCALES) + VALUES not in stored:
            shapes[path] = leaf
    return shapes, quantization


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array at an address that jax on a CPU takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _mapped(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The array that a file begins with, in the kernel's own pages of the file: no memory is filled, and jax
    on a CPU takes them over. Writing to it leaves the file alone; cutting the file short ends the process."""
    size = math.prod(shape) * dtype.itemsize
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size < size:
            raise _too_short(path)
        pages = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_WILLNEED"):
        pages.madvise(mmap.MADV_WILLNEED)  # a disk is read ahead from now on, not when a page is missed
    return np.frombuffer(pages, np.uint8).view(dtype).reshape(shape)


def _read_into(path: pathlib.Path, rows: np.ndarray) -> None:
    """Fills the contiguous `rows` with what a file begins with."""
    with open(path, "rb", buffering=0) as file:
        if file.readinto(rows.reshape(-1).view(np.uint8).data) != rows.nbytes:
            raise _too_short(path)


def _too_short(path: pathlib.Path) -> ValueError:
    return ValueError(f"{path} is shorter than its array: {_DAMAGED}")


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """An array to write; `stacked`: a piece is one index of axis 0."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool = False

    @property
    def piece_shape(self) -> tuple[int, ...]:
        return self.shape[1:] if self.stacked else self.shape

    @property
    def piece_bytes(self) -> int:
        return math.prod(self.piece_shape) * self.dtype.itemsize

    @property
    def chunks(self) -> tuple[int, ...]:
        """One chunk of at most CHUNK_BYTES: rows of one layer."""
        if math.prod(self.shape) * self.dtype.itemsize <= SMALL_BYTES:
            return self.shape
        rows, *other_sides = self.piece_shape
        parts = min(rows, -(-self.piece_bytes // CHUNK_BYTES))
        return (1,) * self.stacked + (-(-rows // parts), *other_sides)


@dataclasses.dataclass(frozen=True)
class _Written:
    """An array that is on disk already, given to Orbax where it expects one in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    folder: pathlib.Path


def _name(path: str, layer: int | None) -> str:
    return path if layer is None else f"{path}[{layer}]"


def contiguous(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A C-contiguous copy in `dtype`; of a transposed matrix by tiles, 3 to 5 times as fast as numpy.

    A tile is copied first and turned then: rows of a matrix lie powers of two apart, so what is read down its
    columns would push itself out of the cache.
    """
    copy = np.empty(value.shape, dtype)
    if value.ndim != 2 or value.strides[0] >= value.strides[1]:
        copy[...] = value
        return copy
    source = value.T
    for row in range(0, source.shape[0], _TILE[0]):
        for column in range(0, source.shape[1], _TILE[1]):
            tile = source[row : row + _TILE[0], column : column + _TILE[1]].copy()
            copy[column : column + _TILE[1], row : row + _TILE[0]] = tile.T
    return copy
