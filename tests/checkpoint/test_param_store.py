"""The store of parameters: what Orbax reads back, and what survives an interruption."""

import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import unflatten_dict

from unitoken_jax.checkpoint import param_store
from unitoken_jax.checkpoint.param_store import ArraySpec, ParamStore, StoredParams, contiguous
from unitoken_jax.storage.paths import literal_path

ARRAYS = {
    "a/kernel": ArraySpec((3, 50, 8), np.dtype(ml_dtypes.bfloat16), stacked=True),
    "a/bias": ArraySpec((3, 8), np.dtype(np.float32), stacked=True),
    "b/kernel": ArraySpec((70, 9), np.dtype(np.float32)),
    "b/scale": ArraySpec((5,), np.dtype(np.float32)),
}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(param_store, "CHUNK_BYTES", 256)
    monkeypatch.setattr(param_store, "SMALL_BYTES", 128)


def pieces():
    rng = np.random.default_rng(0)
    for path, spec in ARRAYS.items():
        value = rng.normal(size=spec.shape).astype(np.float32)
        yield from (
            ((path, i, each) for i, each in enumerate(value)) if spec.stacked else [(path, None, value)]
        )


def test_a_folder_with_pattern_signs_in_its_name(tmp_path):
    folder = tmp_path / "m[v2]\\*"
    store = ParamStore(folder, ARRAYS, {})
    for path, layer, value in pieces():
        store.write(path, layer, value)
    store.publish(folder / "params")
    stored = StoredParams(literal_path(folder) / "params")
    assert stored.shapes.keys() == ARRAYS.keys()
    for path, layer, value in pieces():
        np.testing.assert_array_equal(stored.read(path, layer), value.astype(ARRAYS[path].dtype))


def test_orbax_reads_what_was_written_in_pieces(tmp_path, small_chunks, caplog):
    store = ParamStore(tmp_path / "part", ARRAYS, {"why": 1})
    for path, layer, value in pieces():
        store.write(path, layer, value)
    for path, layer, value in pieces():
        read = np.concatenate([store.read(path, layer, rows) for rows in store.blocks(path)])
        np.testing.assert_array_equal(read, value.astype(ARRAYS[path].dtype))
    store.publish(tmp_path / "part" / "params")
    assert not caplog.records  # nothing of Orbax's that a user would have to wonder about
    assert [each.name for each in (tmp_path / "part").iterdir()] == ["params"]
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / "part" / "params")
    for path, layer, value in pieces():
        group, name = path.split("/")
        here = np.asarray(found[group][name])
        assert (here.shape, here.dtype) == (ARRAYS[path].shape, ARRAYS[path].dtype)
        np.testing.assert_array_equal(here if layer is None else here[layer], value.astype(here.dtype))


@pytest.mark.parametrize("ocdbt", [False, True], ids=["as conversion writes", "as training does"])
def test_pieces_are_read_one_by_one(tmp_path, small_chunks, ocdbt):
    whole = {path: np.zeros(spec.shape, spec.dtype) for path, spec in ARRAYS.items()}
    store = ParamStore(tmp_path / "part", ARRAYS, None)
    for path, layer, value in pieces():
        whole[path][... if layer is None else layer] = value
        store.write(path, layer, value)
    if ocdbt:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "params", unflatten_dict(whole, sep="/"))
    else:
        store.publish(tmp_path / "params")
    stored = StoredParams(tmp_path / "params")
    assert {path: tuple(leaf.shape) for path, leaf in stored.shapes.items()} == {
        path: spec.shape for path, spec in ARRAYS.items()
    }
    for path, layer, _ in pieces():
        expected = whole[path] if layer is None else whole[path][layer]
        np.testing.assert_array_equal(stored.read(path, layer), expected)


def test_chunks_are_rows_of_one_layer(small_chunks):
    assert ARRAYS["a/kernel"].chunks == (1, 13, 8)  # 800 bytes a layer in 4
    assert ARRAYS["b/kernel"].chunks == (7, 9)
    assert ARRAYS["a/bias"].chunks == (3, 8)
    assert ArraySpec((2, 9000), np.dtype(np.float32)).chunks == (1, 9000)  # a row is never split


def test_goes_on_for_the_same_purpose_only(tmp_path):
    store = ParamStore(tmp_path / "part", ARRAYS, {"why": (1, 2)})
    (path, layer, value), *_ = pieces()
    store.write(path, layer, value)
    store.note("sum", {"bytes": 7})
    with (tmp_path / "part" / "journal.jsonl").open("a") as file:
        file.write('["b/sca')  # killed while writing
    again = ParamStore(tmp_path / "part", ARRAYS, {"why": (1, 2)})
    assert again.is_done(path, 0)
    assert not again.is_done(path, 1)
    assert not again.is_done("b/scale", None)
    assert again.done["sum"] == {"bytes": 7}
    other = ParamStore(tmp_path / "part", ARRAYS, {"why": 3})
    assert not other.done
    assert not list((tmp_path / "part" / "arrays").iterdir())


def test_contiguous_copies_transposed_matrices():
    value = np.arange(300 * 140, dtype=np.int32).astype(np.float16).reshape(140, 300).T
    made = contiguous(value, np.dtype(np.float32))
    assert made.flags.c_contiguous
    np.testing.assert_array_equal(made, value.astype(np.float32))
    assert contiguous(np.zeros((0, 3), np.float32).T, np.dtype(np.float32)).shape == (3, 0)


def test_files_that_jax_takes_over_without_a_copy(tmp_path, small_chunks):
    """Values with a chunk of zeros, and a last chunk that is not full."""
    spec = ArraySpec((3, 35, 16), np.dtype(np.int8), True)
    value = np.arange(3, dtype=np.int8)[:, None, None] + np.zeros(spec.shape, np.int8)
    assert spec.chunks == (1, 12, 16)
    store = ParamStore(tmp_path / "part", {"a/kernel": spec}, {})
    for layer in range(3):
        store.write("a/kernel", layer, value[layer])
    store.publish(tmp_path / "part" / "params")
    stored = StoredParams(tmp_path / "part" / "params")
    for layer in range(3):
        read = stored.read("a/kernel", layer)
        np.testing.assert_array_equal(read, value[layer])
        assert read.ctypes.data % 64 == 0
    np.testing.assert_array_equal(stored.read("a/kernel"), value)
    (tmp_path / "part/params/a.kernel/2.0.0").write_bytes(b"short")
    with pytest.raises(
        ValueError, match=r"2\.0\.0 is shorter than its array: the model directory is damaged"
    ):
        StoredParams(tmp_path / "part" / "params").read("a/kernel", 2)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_a_large_array_in_one_file_takes_no_memory_of_its_own(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(param_store, "SMALL_BYTES", 2**14)
    spec = ArraySpec((2, 256, 2**10), np.dtype(dtype), True)
    store = ParamStore(tmp_path / "part", {"a/kernel": spec}, {})
    value = np.random.default_rng(0).integers(-9, 9, spec.shape).astype(spec.dtype)
    for layer in range(2):
        store.write("a/kernel", layer, value[layer])
    store.publish(tmp_path / "params")
    stored = StoredParams(tmp_path / "params")
    stored.read("a/kernel", 0)
    tracemalloc.start()
    read = stored.read("a/kernel", 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**14 < read.nbytes
    assert (read.dtype, read.ctypes.data % 64) == (spec.dtype, 0)
    device = jax.device_put(read, jax.devices("cpu")[0])
    assert device.unsafe_buffer_pointer() == read.ctypes.data  # nor is it copied there
    np.testing.assert_array_equal(device, value[1])
    read[0] = 0  # a copy of the page, not the file
    np.testing.assert_array_equal(StoredParams(tmp_path / "params").read("a/kernel", 1), value[1])
    (tmp_path / "params/a.kernel/0.0.0").write_bytes(b"short")
    with pytest.raises(
        ValueError, match=r"0\.0\.0 is shorter than its array: the model directory is damaged"
    ):
        StoredParams(tmp_path / "params").read("a/kernel", 0)


@pytest.fixture
def stored_in_files(tmp_path, small_chunks):
    """A checkpoint "params" as conversion writes it; a/kernel is 1 everywhere, save for zeros in layer 2."""
    spec = ArraySpec((3, 35, 16), np.dtype(np.int8), True)
    store = ParamStore(tmp_path / "part", {"a/kernel": spec}, {})
    for layer in range(3):
        store.write("a/kernel", layer, np.full((35, 16), layer < 2, np.int8))
    store.publish(tmp_path / "params")
    return tmp_path / "params"


def test_zeros_are_written_and_a_missing_file_is_damage(stored_in_files):
    folder = stored_in_files / "a.kernel"
    assert len(list(folder.glob("*.*.0"))) == 9  # 3 layers in 3 chunks each
    (folder / "2.1.0").unlink()
    for layer in (2, None):
        with pytest.raises(ValueError, match=r"params cannot be read .*/2\.1\.0\" is missing.*copy it again"):
            StoredParams(stored_in_files).read("a/kernel", layer)
    assert StoredParams(stored_in_files).read("a/kernel", 1).all()


def test_where_zeros_were_left_out_a_missing_file_means_them(stored_in_files):
    """As Orbax wrote before its metadata said more."""
    metadata = stored_in_files / "_METADATA"
    values = json.loads(metadata.read_text())
    assert values.pop("store_array_data_equal_to_fill_value")
    metadata.write_text(json.dumps(values))
    (stored_in_files / "a.kernel" / "0.1.0").unlink()
    for value in (
        StoredParams(stored_in_files).read("a/kernel", 0),
        StoredParams(stored_in_files).read("a/kernel")[0],
    ):
        assert (value[:12].all(), value[12:24].any(), value[24:].all()) == (True, False, True)


def test_what_is_no_checkpoint_is_named(tmp_path):
    folder = tmp_path / "params"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, {"a": {"b": np.zeros(3)}})
    assert StoredParams(folder).shapes["a/b"].shape == (3,)
    (folder / "manifest.ocdbt").write_bytes(b"short")
    with pytest.raises(
        ValueError, match=r"params cannot be read \(DATA_LOSS.*: the model directory is damaged"
    ):
        StoredParams(folder)
    for text in ("{", "[]", '{"tree_metadata": {"a": {}}}'):
        (folder / "_METADATA").write_text(text)
        with pytest.raises(ValueError, match=r"_METADATA names no arrays .*: the checkpoint is damaged"):
            StoredParams(folder)
    (folder / "_METADATA").unlink()
    with pytest.raises(FileNotFoundError, match="params/_METADATA"):
        StoredParams(folder)
