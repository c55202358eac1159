"""Files and folders appear whole or not at all."""

import pytest

from unitoken_jax.storage.atomic import atomic_folder, backup_path, staging_path


def fill(path, text):
    with atomic_folder(path) as folder:
        (folder / "new").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as folder:
        (folder / "new").touch()
        assert not path.exists()
    assert names(tmp_path / "deep") == ["folder"]
    assert names(tmp_path / "deep" / "folder") == ["new"]


def test_a_failed_block_leaves_nothing_and_keeps_what_was_there(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "folder", replace=True) as folder:
        (folder / "missing" / "new").touch()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["old"]


def test_only_an_empty_folder_gives_way_unless_told_to_replace(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    fill(path, "first")
    with pytest.raises(OSError, match="folder"):
        fill(path, "second")
    assert (path / "new").read_text() == "first"
    with atomic_folder(path, replace=True) as folder:
        (folder / "other").touch()
    assert names(tmp_path) == ["folder"]
    assert names(path) == ["other"]


def test_what_a_killed_process_left_is_not_taken_over(tmp_path):
    for leftover in (staging_path(tmp_path / "folder"), backup_path(tmp_path / "folder")):
        leftover.mkdir()
        (leftover / "stale").touch()
    with atomic_folder(tmp_path / "folder", replace=True) as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["new"]
