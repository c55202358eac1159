"""Torch zip files: what is read, what is refused, and that nothing in them ever runs."""

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unitoken_jax.convert.torch.pickles import read_pickle
from unitoken_jax.convert.torch.report import ConversionError

HEAD = b"\x80\x02"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def ints(values) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def tensor(key: str, kind: str, numel: int, shape, stride, offset: int = 0) -> bytes:
    """Opcodes of torch._utils._rebuild_tensor_v2((storage), offset, shape, stride, False, OrderedDict())."""
    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
    storage += whole(numel) + b"tQ"
    arguments = b"(" + storage + whole(offset) + ints(shape) + ints(stride) + b"\x89"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"ccollections\nOrderedDict\n)RtR"


def table(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u"


def archive(path, index: bytes, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", HEAD + index + b".")
        for key, value in enumerate(storages):
            file.writestr(f"a/data/{key}", value.tobytes())
    return path


KINDS = [
    ("FloatStorage", np.float32),
    ("HalfStorage", np.float16),
    ("BFloat16Storage", ml_dtypes.bfloat16),
    ("LongStorage", np.int64),
]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_storages_and_strides(tmp_path, kind, dtype):
    values = np.arange(12).astype(dtype)
    index = table(
        plain=tensor("0", kind, 12, (3, 4), (4, 1)),
        turned=tensor("0", kind, 12, (4, 3), (1, 4)),
        part=tensor("0", kind, 12, (2, 2), (4, 1), 5),
        scalar=tensor("0", kind, 12, (), (), 7),
    )
    found = read_pickle(archive(tmp_path / "a.bin", index, [values]))
    plain = values.reshape(3, 4)
    for name, expected in (("plain", plain), ("turned", plain.T), ("part", plain[1:, 1:3]), ("scalar", 7)):
        assert found[name].dtype == dtype
        assert found[name].shape == np.shape(expected)
        np.testing.assert_array_equal(found[name].read(), expected)


def test_lightning_extras_are_inert(tmp_path):
    weights = table(w=tensor("0", "FloatStorage", 4, (4,), (1,)))
    callback = (
        b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n)\x81}(" + text("x") + b"K\x01ub"
    )
    index = table(state_dict=weights, callbacks=callback, epoch=b"K\x03")
    found = read_pickle(archive(tmp_path / "a.ckpt", index, [np.arange(4, dtype=np.float32)]))
    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"].read(), np.arange(4))


def evil(kind: str, marker) -> bytes:
    command = text(f"touch {marker}")
    return {
        "reduce": b"cos\nsystem\n(" + command + b"tR",
        "posix": b"cposix\nsystem\n(" + command + b"tR",
        "inst": b"(" + command + b"ios\nsystem\n",
        "stack": text("os") + text("system") + b"\x93(" + command + b"tR",
        "eval": b"cbuiltins\neval\n(" + text("__import__('os').getcwd()") + b"tR",
        "getattr": b"cbuiltins\ngetattr\n(" + text("a") + text("upper") + b"tR",
        "torch": b"ctorch.serialization\nload\n(" + text(str(marker)) + b"tR",
        "dotted": b"ctorch\nFloatStorage.__init__.__globals__\n",
    }[kind]


@pytest.mark.parametrize("kind", ["reduce", "posix", "inst", "stack", "eval", "getattr", "torch", "dotted"])
def test_code_never_runs(tmp_path, kind, monkeypatch):
    marker = tmp_path / "ran"
    monkeypatch.setattr(os, "system", lambda _: marker.write_text("ran"))
    path = archive(tmp_path / "evil.ckpt", table(w=evil(kind, marker)))
    with pytest.raises(ConversionError, match=r"evil\.ckpt names .*Nothing was run"):
        read_pickle(path)
    assert not marker.exists()


def test_a_pickle_cannot_change_what_the_next_file_reads(tmp_path):
    # BUILD with slots sets attributes on what the allow-list hands out.
    index = table(a=b"ccollections\nOrderedDict\n(N}(" + text("mark") + b"K\x01utb")
    with pytest.raises(ConversionError):
        read_pickle(archive(tmp_path / "a.bin", index))
    assert not hasattr(OrderedDict, "mark")


@pytest.mark.parametrize("how", ["at once", "one by one", "old protocol", "pairs", "dict of pairs"])
def test_a_key_twice_is_an_error(tmp_path, how):
    entry = text("w") + b"K\x01"
    pairs = b"](" + (b"(" + entry + b"t") * 2 + b"e"
    index = {
        "at once": b"}(" + entry * 2 + b"u",
        "one by one": b"}" + (entry + b"s") * 2,
        "old protocol": b"(" + entry * 2 + b"d",
        "pairs": b"ccollections\nOrderedDict\n(" + pairs + b"tR",
        "dict of pairs": b"c__builtin__\ndict\n(" + pairs + b"tR",
    }[how]
    with pytest.raises(ConversionError, match=r"a\.bin: data\.pkl has the key 'w' twice"):
        read_pickle(archive(tmp_path / "a.bin", table(state_dict=index)))


def test_legacy_files_are_refused_by_name(tmp_path):
    path = tmp_path / "old.bin"
    path.write_bytes(pickle.dumps({"a": 1}, 2))
    with pytest.raises(ConversionError, match=r"old\.bin is a torch file of before 1\.6"):
        read_pickle(path)
    path.write_bytes(b"hello")
    with pytest.raises(ConversionError, match="is no torch file"):
        read_pickle(path)


ONE = np.arange(12, dtype=np.float32)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (tensor("0", "FloatStorage", 12, (4, 4), (4, 1)), "does not fit its storage"),
        (tensor("0", "FloatStorage", 12, (3, 4), (5, 1)), "does not fit its storage"),
        (tensor("0", "FloatStorage", 12, (3,), (4, 1)), "without sense"),
        (tensor("0", "FloatStorage", 12, (3,), (-1,)), "without sense"),
        (tensor("0", "FloatStorage", 99, (3,), (1,)), "has 48 bytes; 99 values"),
        (tensor("9", "FloatStorage", 12, (3,), (1,)), "data/9 is missing"),
        (tensor("0", "StrangeStorage", 12, (3,), (1,)), "names torch.StrangeStorage"),
        (b"K\x01", "holds no tensors"),
        (b"R", "cannot be read"),
    ],
)
def test_wrong_indexes(tmp_path, entry, message):
    with pytest.raises(ConversionError, match=message):
        read_pickle(archive(tmp_path / "a.bin", table(w=entry), [ONE]))


def test_compressed_members_are_refused(tmp_path):
    index = table(w=tensor("0", "FloatStorage", 12, (12,), (1,)))
    path = archive(tmp_path / "a.bin", index, [ONE], zipfile.ZIP_DEFLATED)
    with pytest.raises(ConversionError, match="is compressed"):
        read_pickle(path)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    index = table(
        w=tensor("0", "FloatStorage", 12, (3, 4), (4, 1)), v=tensor("1", "HalfStorage", 4, (4,), (1,))
    )
    path = tmp_path_factory.mktemp("good") / "good.bin"
    return archive(path, index, [ONE, np.ones(4, np.float16)])


def read_all(path) -> dict:
    return {name: found.read().copy() for name, found in read_pickle(path).items()}


def test_a_changed_weight_is_seen(good, tmp_path):
    data = bytearray(good.read_bytes())
    data[data.index(ONE.tobytes()) + 5] ^= 4
    (tmp_path / "bad.bin").write_bytes(data)
    found = read_pickle(tmp_path / "bad.bin")
    with pytest.raises(ConversionError, match=r"data/0 does not match its checksum"):
        found["w"].read()


def test_a_directory_that_lies_about_its_place(good, tmp_path):
    """Offsets count from where the directory says it starts: one byte more, and the first is negative."""
    content = bytearray(good.read_bytes())
    content[content.rindex(b"PK\x05\x06") + 16] += 1
    (tmp_path / "bad.bin").write_bytes(content)
    with pytest.raises(ConversionError, match="no local header at byte -1"):
        read_pickle(tmp_path / "bad.bin")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_an_error_or_harmless(good, tmp_path, data):
    content = bytearray(good.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "damaged.bin"
    path.write_bytes(content)
    try:
        found = read_all(path)
    except ConversionError:
        return
    expected = read_all(good)
    for name in expected.keys() & found.keys():
        np.testing.assert_array_equal(found[name], expected[name])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_pickle_in_an_intact_zip(good, tmp_path, data):
    """Here the checksum is right, so the reader of pickles itself must hold."""
    with zipfile.ZipFile(good) as file:
        index = bytearray(file.read("a/data.pkl"))
    for _ in range(data.draw(st.integers(1, 3))):
        index[data.draw(st.integers(0, len(index) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.bin"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/data.pkl", bytes(index))
        file.writestr("a/data/0", ONE.tobytes())
        file.writestr("a/data/1", np.ones(4, np.float16).tobytes())
    path.write_bytes(buffer.getvalue())
    with contextlib.suppress(ConversionError):
        read_all(path)


@pytest.mark.parity
def test_files_torch_wrote(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    wanted = {
        "a": torch.arange(6.0).reshape(2, 3),
        "t": torch.arange(6.0).reshape(2, 3).T,
        "b": torch.linspace(-1, 1, 7).bfloat16(),
        "h": torch.arange(4).half()[1:3],
        "p": torch.nn.Parameter(torch.ones(3)),
        "i": torch.arange(3),
    }
    for content in (wanted, {"state_dict": OrderedDict(wanted), "epoch": 3, "lr": [0.1]}):
        torch.save(content, tmp_path / "a.pt")
        found = read_pickle(tmp_path / "a.pt")
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name].dtype.name == str(value.dtype).removeprefix("torch.")
            expected = value.detach().float().numpy()
            np.testing.assert_array_equal(found[name].read().astype(np.float32), expected)
    torch.save(wanted, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ConversionError, match=r"before 1\.6"):
        read_pickle(tmp_path / "old.pt")
