"""Torch's zip files (.ckpt, .bin, .pt, .pth) without torch, and without running anything in them.

Such a file is a zip archive: `data.pkl`, a pickle that says which tensors there are, and one uncompressed
member a storage. A pickle can name any function and have it called, so only the names below are ever
resolved, to code of this module; any other name is an error. Extras that training frameworks leave beside the
weights become inert objects.
"""

import collections
import io
import math
import os
import pathlib
import pickle
import struct
import zipfile
import zlib
from typing import Any, NamedTuple, cast

import ml_dtypes
import numpy as np

from unitoken_jax.convert.torch.report import ConversionError, Tensor, map_bytes

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Packages whose objects training leaves in a .ckpt: read, kept apart, never imported.
_INERT_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "argparse", "taming")
_INERT_NAMES = {
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("torch", "device"),
    ("typing", "Any"),
    ("collections", "defaultdict"),
}
_BUILTINS = {"list": list, "set": set, "int": int, "float": float, "tuple": tuple}
_DICTS = {("collections", "OrderedDict"), ("builtins", "dict"), ("__builtin__", "dict")}
_MAX_INDEX_BYTES = 2**28  # a 34B model's data.pkl has a few hundred kilobytes


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    numel: int


class _Table(collections.OrderedDict):
    """What a pickle's dicts become: a key twice is an error, where a dict would keep the last value alone."""

    location = ""

    def __setitem__(self, key, value):
        if key in self:
            raise ConversionError(f"{type(self).location} has the key {key!r} twice: the file is damaged")
        super().__setitem__(key, value)


class _Inert:
    """Stands for an object that is none of our business: takes any construction, does nothing."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass

    def __setitem__(self, *_):
        pass

    def append(self, _):
        pass

    def extend(self, _):
        pass


def read_pickle(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a torch zip file by name, not read yet; of its "state_dict" where it has one.

    Raises ConversionError naming the file: not a zip (torch before 1.6), damaged, or a pickle that names
    something outside the allow-list. Nothing the file names is imported or called.
    """
    path = pathlib.Path(path)
    archive = _Archive(path)
    content = _Reader(archive).load_content()
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ConversionError(
            f"{path} holds a {type(content).__name__}; expected a dict of tensors, or one under 'state_dict'"
        )
    tensors = {}
    for name, value in content.items():
        if isinstance(value, Tensor) and isinstance(name, str):
            tensors[name] = Tensor(name, value.shape, value.dtype, value.file, value.read)
    if not tensors:
        raise ConversionError(f"{path} holds no tensors by name; expected a state dict")
    return tensors


class _Archive:
    """The zip file: uncompressed members, by memory map."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        with open(path, "rb") as file:
            start = file.read(4)
        if start[:2] != b"PK":
            kind = (
                "is a torch file of before 1.6 (a bare pickle)"
                if start[:1] == b"\x80"
                else "is no torch file"
            )
            raise ConversionError(
                f"{path} {kind}; only zip files are read. With torch: "
                "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except Exception as error:  # zipfile raises many kinds on damaged directories
            raise ConversionError(f"{path} is a damaged or truncated zip file: {error}") from None
        roots = [info.filename[: -len("data.pkl")] for info in infos if info.filename.endswith("data.pkl")]
        root = min(roots, key=len, default=None)
        if root is None:
            raise ConversionError(f"{path} is a zip file without data.pkl: torch did not write it")
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.filename.removeprefix(root)
            if name in self._members:
                raise ConversionError(f"{path} has two members {info.filename}: it is damaged")
            self._members[name] = info
        if "byteorder" in self._members and self.member("byteorder").tobytes() != b"little":
            raise ConversionError(f"{path} was written on a big-endian machine; only little-endian is read")

    def member(self, name: str, check: bool = True) -> np.ndarray:
        """uint8[n], a view of the file; its CRC compared where `check`."""
        info = self._members.get(name)
        location = f"{self.path}, member {name}"
        if info is None:
            raise ConversionError(f"{location} is missing: the file is damaged")
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.flag_bits & 1
            or info.compress_size != info.file_size
        ):
            raise ConversionError(f"{location} is compressed or encrypted; torch stores members as they are")
        header = map_bytes(self.path, info.header_offset, 30).tobytes()
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise ConversionError(
                f"{location}: no local header at byte {info.header_offset}: the file is damaged"
            )
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name_length + extra_length
        data = map_bytes(self.path, start, info.file_size)
        if len(data) != info.file_size:
            raise ConversionError(f"{location} is cut short: {len(data)} of {info.file_size} bytes are there")
        if check and zlib.crc32(data.data) != info.CRC:
            raise ConversionError(
                f"{location} does not match its checksum: the file is damaged, fetch it again"
            )
        return data

    def size(self, name: str) -> int:
        """Bytes of a member. Raises ConversionError where it is missing, compressed or cut short."""
        return len(self.member(name, check=False))


# The C unpickler sizes its memo by what the file says, so a few bytes could take all memory; this one, in
# Python, does not.
class _Reader(pickle._Unpickler):
    """Reads data.pkl by allow-list."""

    def __init__(self, archive: _Archive):
        index = archive.member("data.pkl")
        if len(index) > _MAX_INDEX_BYTES:
            raise ConversionError(f"{archive.path}: data.pkl has {len(index)} bytes, too many for an index")
        super().__init__(io.BytesIO(index.tobytes()), encoding="utf-8")
        self._archive = archive
        self._checked: set[str] = set()
        # A class of its own for each file: a pickle can set attributes on what it is given.
        self._table = type("Table", (_Table,), {"location": f"{archive.path}: data.pkl"})

    def load_content(self) -> Any:
        try:
            return self.load()
        except ConversionError:
            raise
        except Exception as error:  # damaged pickles fail in every way there is
            raise ConversionError(
                f"{self._archive.path}: data.pkl cannot be read ({type(error).__name__}: {error}): "
                "the file is damaged"
            ) from None

    def load_empty_dictionary(self):
        self.append(self._table())

    def load_dict(self):
        items = self.pop_mark()
        self.append(self._table(zip(items[::2], items[1::2], strict=True)))

    dispatch = cast(Any, pickle._Unpickler).dispatch | {
        pickle.EMPTY_DICT[0]: load_empty_dictionary,
        pickle.DICT[0]: load_dict,
    }

    def find_class(self, module: str, name: str):
        if module == "torch" and name in _STORAGES:
            return _StorageType(np.dtype(_STORAGES[name]))
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._parameter
        if (module, name) in _DICTS:
            return self._table
        if (module, name) == ("torch", "Size"):
            return tuple
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        if (module, name) in _INERT_NAMES or module.split(".")[0] in _INERT_PACKAGES:
            return type("Inert", (_Inert,), {})
        raise ConversionError(
            f"{self._archive.path} names {module}.{name}, which weights do not need: it would run code when "
            "loaded. Nothing was run. If you trust the file, save its state dict alone: "
            "torch.save({'state_dict': ...}, NEW_FILE)"
        )

    def persistent_load(self, pid) -> _Storage:
        kind, storage, key, _, numel = pid
        if kind != "storage" or not isinstance(storage, _StorageType):
            raise ConversionError(f"{self._archive.path}: data.pkl refers to {kind!r}; expected a storage")
        size = self._archive.size(f"data/{key}")
        if not isinstance(numel, int) or numel < 0 or numel * storage.dtype.itemsize != size:
            raise ConversionError(
                f"{self._archive.path}: storage {key} has {size} bytes; {numel} values of {storage.dtype} "
                "were expected"
            )
        return _Storage(str(key), storage.dtype, numel)

    def _parameter(self, data, *_):
        return data

    def _tensor(self, storage, offset, size, stride, *_) -> Tensor:
        shape, stride = tuple(size), tuple(stride)
        whole = (offset, *shape, *stride)
        if (
            not isinstance(storage, _Storage)
            or len(shape) != len(stride)
            or not all(isinstance(n, int) and n >= 0 for n in whole)
        ):
            raise ConversionError(f"{self._archive.path}: data.pkl describes a tensor without sense: {whole}")
        count = math.prod(shape)
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride)) if count else offset
        if count > storage.numel or (count and last >= storage.numel):
            raise ConversionError(
                f"{self._archive.path}: a tensor of shape {shape}, stride {stride}, offset {offset} does not "
                f"fit its storage {storage.key} of {storage.numel} values"
            )

        def read() -> np.ndarray:
            first = storage.key not in self._checked
            flat = self._archive.member(f"data/{storage.key}", check=first).view(storage.dtype)
            self._checked.add(storage.key)
            steps = tuple(s * storage.dtype.itemsize for s in stride)
            return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)

        return Tensor("", shape, storage.dtype, str(self._archive.path), read)
