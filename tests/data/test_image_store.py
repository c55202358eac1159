"""Images in folders and tar shards, local or behind a URL."""

import pickle
import re
import tarfile

import pytest

from tests.helpers.host_data import tar_name, write_tar
from tests.helpers.tiny_model import noise
from unitoken_jax.data.image_store import Tars, open_images, scan_tars
from unitoken_jax.sequence.image import ImageError, image_size, open_image
from unitoken_jax.storage.paths import expand


def test_tar_shards(tmp_path):
    write_tar(tmp_path / "a.tar", range(4))
    write_tar(tmp_path / "b.tar", range(4, 7))
    pattern = str(tmp_path / "*.tar")
    store = pickle.loads(pickle.dumps(open_images(pattern, "x.jsonl", scan_tars(pattern))))
    assert isinstance(store, Tars)
    for number in range(7):
        image = store / tar_name(number)
        assert image_size(image) == (20, 30 + number)
        assert open_image(image).tobytes() == noise(number, 30 + number, 20).tobytes()
    with pytest.raises(ImageError, match=r"none\.png \(in 2 tar shards, .*a\.tar \.\.\.\) does not exist"):
        open_image(store / "none.png")


@pytest.mark.parametrize("images", ["pics[v2].tar", "b[v2]/*.tar"])
def test_brackets_in_the_names_of_shards(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b[v2]").mkdir()
    write_tar(tmp_path / "b[v2]" / "1.tar", range(2))
    write_tar(tmp_path / "pics[v2].tar", range(2))
    assert image_size(open_images(images, "x.jsonl") / tar_name(1)) == (20, 31)


def test_a_folder_is_a_folder_whatever_it_is_called(tmp_path):
    (tmp_path / "a.tar").mkdir()
    noise(1, 30, 20).save(tmp_path / "a.tar" / "1.png")
    assert image_size(open_images(str(tmp_path / "a.tar"), "x.jsonl") / "1.png") == (20, 30)


@pytest.mark.parametrize("size", [700, 3000, -1024, 100])
def test_a_shard_cut_off_anywhere_is_named_and_its_whole_images_are_kept(tmp_path, size):
    path = write_tar(tmp_path / "a.tar", range(0, 8, 2))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    whole = path.read_bytes()[: last.offset_data + -(-last.size // 512) * 512 + 1024]
    path.write_bytes(whole[:size])
    with pytest.raises(ImageError, match=r"a\.tar is (truncated|damaged).*: copy the shard again"):
        scan_tars(str(path))
    errors = []
    table = scan_tars(str(path), errors.append)
    assert len(errors) == 1
    assert len(table) == {700: 0, 3000: 1, -1024: 4, 100: 0}[size]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (slice(148, 156), b"0000000\0", r"after 2 members \(a bad header\)"),  # its checksum
        (slice(124, 136), b"\xff" * 12, r"at 4\.png \(member 3\): a negative size"),
        (slice(124, 136), b"\x80" + b"\x7f" * 11, None),
    ],
)
def test_a_shard_damaged_within_is_named_and_what_comes_before_is_kept(tmp_path, field, value, problem):
    path = write_tar(tmp_path / "a.tar", range(0, 8, 2))
    with tarfile.open(path) as tar:
        start = tar.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    header = content[start : start + 512]
    header[field] = value
    if field != slice(148, 156):
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    content[start : start + 512] = header
    path.write_bytes(content)
    errors = []
    assert len(scan_tars(str(path), errors.append)) == 2
    assert re.search(problem or r"is truncated within 4\.png", str(errors[0]))


def test_a_name_in_two_shards_is_an_error(tmp_path):
    write_tar(tmp_path / "a.tar", [0, 2])
    write_tar(tmp_path / "b.tar", [2])
    with pytest.raises(ImageError, match=r"twice in the tar shards .*a\.tar and .*b\.tar \(1 such"):
        scan_tars(str(tmp_path / "*.tar"))


def test_folders(tmp_path):
    noise(0).save(tmp_path / "0.png")
    for store in (open_images(str(tmp_path), "x"), open_images("", str(tmp_path / "x.jsonl"))):
        assert image_size(store / "0.png") == (16, 24)


def test_a_url(tmp_path):
    from etils import epath

    noise(0).save(tmp_path / "0.png")
    assert image_size(epath.Path(tmp_path) / "0.png") == (16, 24)
    assert expand(str(tmp_path)) == [tmp_path / "0.png"]
    with pytest.raises(FileNotFoundError, match="no files at"):
        expand(str(tmp_path / "*.tar"))
