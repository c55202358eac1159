"""Data behind a URL: the same batches as from the local disk. The bucket is one in memory."""

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.helpers.host_data import (
    DRAWING,
    QUESTION,
    batches_equal,
    data_config,
    tar_name,
    write_data,
    write_tar,
)
from tests.helpers.tiny_model import CONFIG, noise, tiny_tokenizer
from unitoken_jax.config import SourceConfig
from unitoken_jax.data.code_shards import CodesError
from unitoken_jax.data.codes import codes_path
from unitoken_jax.data.image_store import open_images, scan_tars
from unitoken_jax.data.loader import Loader
from unitoken_jax.sequence.image import open_image
from unitoken_jax.storage.paths import as_path, expand


class Bucket(MemoryFileSystem):
    """What gs:// is for these tests."""

    protocol = ("gcs", "gs", "memory")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture(autouse=True)
def bucket(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    yield Bucket
    fsspec.register_implementation("gcs", "gcsfs.GCSFileSystem", clobber=True)
    Bucket.store.clear()


def upload(folder):
    for path in folder.iterdir():
        if path.is_file():
            with as_path(f"gs://bucket/set/{path.name}").open("wb") as file:
                file.write(path.read_bytes())


def test_the_same_batches(tmp_path):
    data = write_data(tmp_path / "local", [QUESTION, DRAWING] * 6)
    upload(tmp_path / "local")
    for path in (tmp_path / "local").iterdir():
        assert as_path(f"gs://bucket/set/{path.name}").exists()
    here, there = (
        Loader(data_config(sources=(SourceConfig(str(path)),)), CONFIG, tiny_tokenizer(), 0)
        for path in (data, "gs://bucket/set/data.jsonl")
    )
    for _ in range(3):
        assert batches_equal(next(here), next(there))
    here.close()
    there.close()
    with pytest.raises(FileNotFoundError, match=r"no conversation file at gs://bucket/set/none\.jsonl"):
        Loader(
            data_config(sources=(SourceConfig("gs://bucket/set/none.jsonl"),)), CONFIG, tiny_tokenizer(), 0
        )


def test_tar_shards(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", range(3 * number, 3 * number + 3))
    upload(tmp_path)
    pattern = "gs://bucket/set/*.tar"
    assert [path.name for path in expand(pattern)] == ["0.tar", "1.tar"]
    store = open_images(pattern, "x.jsonl", scan_tars(pattern))
    for number in range(6):
        found = np.asarray(open_image(store / tar_name(number)))
        np.testing.assert_array_equal(found, np.asarray(noise(number, 30 + number, 20)))


def test_an_unknown_kind_of_url():
    with pytest.raises(ValueError, match=r"gcs://bucket/run is no URL that can be opened; expected gs://"):
        as_path("gcs://bucket/run")


def test_codes_are_kept_on_a_local_disk():
    for path in ("gs://b/a.jsonl", "docvqa:1.0.0"):
        with pytest.raises(CodesError, match=f"{path} is no local file.*set the source's `codes`"):
            codes_path(path)
