"""tf.train.Example, the record format TFDS reads, written and read without TensorFlow or protobuf.

Only what we store: features of one or several byte strings, or of integers from 0. Wire format: protobuf;
Example.features = 1, Features.feature = 1 (a map: key = 1, value = 2), Feature.bytes_list = 1,
Feature.int64_list = 3, and value = 1 in both lists, integers packed.
"""

import numpy as np

_BYTES, _INTEGERS = 1, 3  # fields of Feature
_LENGTH = 2  # wire type of what says its length first


def encode_example(features: dict[str, bytes | np.ndarray]) -> bytes:
    """The record of `features`; an array is flattened, its values 0 or more. Names are sorted: one record
    has one encoding."""
    entries = []
    for name, value in sorted(features.items()):
        if isinstance(value, bytes):
            feature = _field(_BYTES, _field(1, value))
        else:
            feature = _field(_INTEGERS, _field(1, _pack(np.asarray(value).reshape(-1))))
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def decode_example(record: bytes) -> dict[str, bytes | np.ndarray]:
    """Features of a record: bytes, or int64[n]. Raises ValueError where it is not such a record."""
    try:
        ((_, features),) = _fields(record)
        found = {}
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            ((kind, values),) = _fields(parts[2])
            if kind not in (_BYTES, _INTEGERS):
                raise ValueError(f"a feature of kind {kind}")
            content = b"".join(value for _, value in _fields(values))
            found[parts[1].decode()] = content if kind == _BYTES else _unpack(content)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"not a record of bytes and integers ({error})") from None
    return found


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | _LENGTH]) + _pack(np.array([len(content)])) + content


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """(number, content) of each field, all of them of the kind that says its length."""
    found, place = [], 0
    while place < len(data):
        tag, size, shift = data[place], 0, 0
        while True:
            place += 1
            size |= (data[place] & 0x7F) << shift
            shift += 7
            if data[place] < 0x80:
                break
        place += 1
        if tag & 7 != _LENGTH or place + size > len(data):
            raise ValueError(f"a field that ends at byte {place + size} of {len(data)}")
        found.append((tag >> 3, data[place : place + size]))
        place += size
    return found


def _pack(values: np.ndarray) -> bytes:
    """Integers from 0 as varints: seven bits a byte, low ones first, the top bit says that more follow."""
    values = values.astype(np.uint64)
    digits = max(1, -(-int(values.max(initial=0)).bit_length() // 7))
    shifts = np.arange(digits, dtype=np.uint64) * np.uint64(7)
    rest = values[:, None] >> shifts
    used = np.maximum(rest > 0, shifts == 0)
    more = np.concatenate([used[:, 1:], np.zeros((len(values), 1), bool)], axis=1)
    table = (rest & np.uint64(0x7F)).astype(np.uint8) | (more.astype(np.uint8) << 7)
    return table[used].tobytes()


def _unpack(data: bytes) -> np.ndarray:
    """int64[n]: the varints in `data`."""
    table = np.frombuffer(data, np.uint8)
    last = table < 0x80
    if len(table) and not last[-1]:
        raise ValueError("a number without end")
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate([[0], ends])[:-1]
    place = np.arange(len(table)) - np.repeat(starts, ends - starts)
    values = (table & 0x7F).astype(np.int64) << (7 * place)
    return np.add.reduceat(values, starts) if len(starts) else np.zeros(0, np.int64)
