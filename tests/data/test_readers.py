"""Records of every kind of data set, by random access."""

import json
import pickle
from unittest import mock

import pytest

from tests.helpers.host_data import write_array_record, write_tfds
from unitoken_jax.config import SourceConfig
from unitoken_jax.data import readers
from unitoken_jax.data.readers import count_records, open_records, resolve_source
from unitoken_jax.sequence.conversation import parse_conversation
from unitoken_jax.sequence.errors import ConversationError
from unitoken_jax.sequence.image import image_size

VALUES = [{"a": 1, "b": "é 🙂 \n x"}, {"conversations": []}, {"c": [1, {"d": ']},"'}]}, {}]


def test_array_records(tmp_path):
    for number, values in enumerate((VALUES[:3], VALUES[3:])):
        path = tmp_path / f"x.array_record-{number:05}-of-00002"
        write_array_record(path, [json.dumps(value).encode() for value in values])
    for path in (tmp_path, tmp_path / "x.array_record*"):
        found = pickle.loads(pickle.dumps(open_records(SourceConfig(str(path), kind="array_record"))))
        assert [found.read(i) for i in range(len(found))] == VALUES
        assert found.location(3) == f"{tmp_path}/x.array_record-00001-of-00002:record 0"
    whole = (tmp_path / "x.array_record-00000-of-00002").read_bytes()
    for size in (0, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.array_record-00000-of-00002").write_bytes(whole[:size])
        with pytest.raises(ConversationError, match=r"00000-of-00002 holds no complete record"):
            open_records(SourceConfig(str(tmp_path / "*array_record*")))
    with pytest.raises(FileNotFoundError):
        count_records(str(tmp_path / "none"))


@pytest.mark.parametrize("path", ["ar[1]/x.array_record", "ar[1]/*.array_record", "~/ar[1]/x.array_record"])
def test_a_source_with_brackets_or_a_tilde_in_its_path(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ar[1]").mkdir()
    write_array_record(tmp_path / "ar[1]" / "x.array_record", [json.dumps(VALUES[0]).encode()])
    assert open_records(resolve_source(SourceConfig(path))).read(0) == VALUES[0]


def test_tfds(tmp_path):
    folder = write_tfds(tmp_path, 5)
    config = SourceConfig(str(folder), split="train[1:]", mapping="tests.helpers.host_data:tfds_conversation")
    found = pickle.loads(pickle.dumps(open_records(config)))
    assert len(found) == 4
    conversation = parse_conversation(found.read(2), found.location(2), None)
    image, question = conversation.turns[0].parts
    assert question == "q3"
    assert image_size(image.path) == (16, 24)
    assert image.name == f"{folder}[train[1:]]:example 2, image 1"
    with pytest.raises(ConversationError, match=r"example 0: the mapping of fields .* failed \(KeyError"):
        open_records(SourceConfig(str(folder))).read(0)
    for raised in (StopIteration(), SystemExit(3), RecursionError("x\n" * 9999)):
        found._map = mock.Mock(side_effect=raised)
        with pytest.raises(ConversationError, match=r"example 0: the mapping .* failed") as error:
            found.read(0)
        assert len(str(error.value)) < 800
    for path, split in ((folder, "test"), ("no_such_set:1.0.0", "train")):
        with pytest.raises(ConversationError, match=f"{path}: TFDS cannot open split '{split}' of it"):
            open_records(SourceConfig(str(path), kind="tfds", split=split))
    with pytest.raises(ValueError, match="has no function 'nothing'"):
        open_records(SourceConfig(str(folder), mapping="tests.helpers.host_data:nothing"))
    digest = readers.records_digest(config)
    assert digest == readers.records_digest(config)
    assert digest != readers.records_digest(SourceConfig(str(folder), mapping=config.mapping))
