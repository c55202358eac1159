"""Safetensors files and checkpoint folders: all problems found, and none hidden."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.reference import REFERENCE, needs_reference
from unitoken_jax.convert.torch.readers import read_folder, read_json, read_safetensors, weight_files
from unitoken_jax.convert.torch.report import ConversionError, ProblemCollector
from unitoken_jax.convert.torch.writers import write_safetensors, write_sharded

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.linspace(-1, 1, 5).astype(ml_dtypes.bfloat16),
    "c": np.ones((1, 2), np.float16),
}


def raw(path, header, data: bytes = b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_written_files_are_read(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", TENSORS)
    found = read_safetensors(tmp_path / "a.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name].read(), value)


def test_the_library_reads_what_we_write(tmp_path):
    from safetensors.numpy import load_file

    write_safetensors(tmp_path / "a.safetensors", TENSORS)
    for name, value in load_file(tmp_path / "a.safetensors").items():
        np.testing.assert_array_equal(value, TENSORS[name])


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, bytes(7), "is cut short"),
        ({"a": entry()}, bytes(9), "cut short or damaged"),
        ({"a": entry(dtype="F8")}, bytes(8), "dtype 'F8'"),
        ({"a": entry(shape=[3])}, bytes(8), "has 8 bytes; expected 12"),
        ({"a": entry(shape=[-2])}, bytes(8), "entry for a"),
        ({"a": entry(shape=[True, 2])}, bytes(8), "entry for a"),
        ({"a": entry(shape="2")}, bytes(8), "entry for a"),
        ({"a": entry(data_offsets=[0, 8, 9])}, bytes(8), "offsets"),
        ({"a": entry(), "b": entry()}, bytes(8), "starts at byte 0, expected 8"),
        ({"a": entry(data_offsets=[8, 16])}, bytes(16), "starts at byte 8, expected 0"),
        ({"a": 3}, b"", "entry for a"),
        (b"{", b"", "not valid JSON"),
        (b"[]", b"", "expected a JSON object"),
        (b'{"a": 1, "a": 2}', b"", "duplicate key 'a'"),
    ],
)
def test_wrong_headers(tmp_path, header, data, message):
    with pytest.raises(ConversionError, match=message):
        read_safetensors(raw(tmp_path / "bad.safetensors", header, data))


@pytest.mark.parametrize("data", [b"", b"123", struct.pack("<Q", 2**62), struct.pack("<Q", 9) + b"{}"])
def test_files_that_are_none(tmp_path, data):
    (tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(ConversionError, match=r"bad\.safetensors"):
        read_safetensors(tmp_path / "bad.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_headers_are_an_error_or_consistent(tmp_path, data):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, TENSORS)
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
        damaged_weights = True
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, 8 + length - 1))] ^= 1 << data.draw(st.integers(0, 7))
        damaged_weights = False
    (tmp_path / "damaged.safetensors").write_bytes(content)
    try:
        found = read_safetensors(tmp_path / "damaged.safetensors")
    except ConversionError:
        return
    assert not damaged_weights, "a file cut short was read"
    assert sum(tensor.read().nbytes for tensor in found.values()) == sum(x.nbytes for x in TENSORS.values())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_bytes_as_json(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    try:
        content = json.loads(content)
    except ValueError:
        content = None
    if isinstance(content, dict):
        assert read_json(tmp_path / "a.json") == content
    else:
        with pytest.raises(ConversionError, match=r"a\.json"):
            read_json(tmp_path / "a.json")


@pytest.fixture
def folder(tmp_path):
    assert len(write_sharded(tmp_path, TENSORS.items(), shard_bytes=30)) == 2
    return tmp_path


def problems(folder) -> list[str]:
    report = ProblemCollector()
    read_folder(folder, report)
    return report.problems


def index(folder, **changes):
    path = folder / "model.safetensors.index.json"
    values = json.loads(path.read_text())
    for name, file in changes.items():
        values["weight_map"].pop(name) if file is None else values["weight_map"].update({name: file})
    path.write_text(json.dumps(values))


def test_shards(folder):
    report = ProblemCollector()
    found, files, _ = read_folder(folder, report)
    assert not report.problems
    assert [file.name for file in files] == [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(found[name].read(), value)
    (folder / "model.safetensors.index.json").unlink()
    assert read_folder(folder, report)[0].keys() == TENSORS.keys()


def test_a_single_file_goes_before_shards_and_their_index(folder):
    """As `transformers` has it, whichever is newer, and even where the index is stale."""
    write_safetensors(folder / "model.safetensors", {"a": TENSORS["a"] + 1})
    for _ in range(2):
        report = ProblemCollector()
        tensors, files, names = read_folder(folder, report)
        assert (tensors.keys(), names) == ({"a"}, {"a"})
        assert files == [folder / "model.safetensors"]
        assert not report.problems
        (note,) = report.notes
        assert "read model.safetensors, as `transformers` does, and not model.safetensors.index.json" in note
        for shard in folder.glob("model-*.safetensors"):
            shard.unlink()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["pytorch_model.bin", "pytorch_model.bin.index.json"], "pytorch_model.bin"),
        (["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["pytorch_model.bin", "model-1.safetensors"], "pytorch_model.bin"),
        (["pytorch_model-1.bin", "model-1.safetensors"], "model-1.safetensors"),
        (["model.safetensors", "model-1.safetensors", "model.safetensors.index.json"], "model.safetensors"),
    ],
)
def test_which_of_several_weights_is_read(tmp_path, names, chosen):
    for name in names:
        (tmp_path / name).touch()
    report = ProblemCollector()
    files, _ = weight_files(tmp_path, report)
    assert files == [tmp_path / chosen]
    assert f"read {chosen}" in report.notes[0]


def test_an_index_goes_before_a_bin_file_and_is_refused_without_its_shards(folder):
    (folder / "pytorch_model.bin").touch()
    found, files, _ = read_folder(folder, ProblemCollector())
    assert (found.keys(), len(files)) == (TENSORS.keys(), 2)
    files[0].unlink()
    report = ProblemCollector()
    weight_files(folder, report)
    with pytest.raises(ConversionError, match=r"which is not there[^$]*note: .*not pytorch_model\.bin"):
        report.check(str(folder))


def test_an_adapter_beside_the_weights_is_not_left_out_in_silence(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert any("adapter_config.json says that an adapter" in problem for problem in problems(folder))


def test_every_problem_is_in_one_report(folder):
    index(folder, a="model-00003-of-00003.safetensors", b=None, d="model-00001-of-00002.safetensors")
    write_safetensors(folder / "model-00002-of-00002.safetensors", {"a": TENSORS["a"], **TENSORS})
    found = "\n".join(problems(folder))
    assert "points to model-00003-of-00003.safetensors, which is not there (1 tensors)" in found
    assert "b is in" in found
    assert "but not in the index" in found
    assert "missing: d: the index says model-00001-of-00002.safetensors" in found
    assert "duplicate: a is in" in found


def test_a_cut_shard_is_named_and_the_others_are_read(folder):
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = problems(folder)
    assert "model-00001-of-00002.safetensors" in problem
    assert "cut short" in problem


def test_an_index_cannot_point_out_of_its_folder(folder):
    index(folder, c="../c.safetensors")
    assert any("points outside its folder" in problem for problem in problems(folder))


def test_empty_folders(tmp_path):
    with pytest.raises(ConversionError, match=r"has no weights; looked for model\.safetensors"):
        read_folder(tmp_path, ProblemCollector())
    with pytest.raises(ConversionError, match="is no folder"):
        read_folder(tmp_path / "nowhere", ProblemCollector())


@needs_reference
def test_the_recorded_release_reads_whole():
    report = ProblemCollector()
    found, files, _ = read_folder(REFERENCE, report)
    assert not report.problems
    assert (len(found), len(files)) == (97, 2)
    assert {tensor.dtype.name for tensor in found.values()} == {"bfloat16"}


def test_a_key_twice_is_found_in_a_large_object_too(tmp_path):
    pairs = ", ".join(f'"{number}": 0' for number in (*range(100_000), 7))
    (tmp_path / "index.json").write_text("{" + pairs + "}")
    with pytest.raises(ConversionError, match="duplicate key '7'"):
        read_json(tmp_path / "index.json")
