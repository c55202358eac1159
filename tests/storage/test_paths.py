"""Paths as a person types them: patterns, home directories, and what the libraries below would misread."""

import os
import pathlib
import pwd

import pytest

from unitoken_jax.storage.paths import absolute, as_path, expand, expand_home, literal_path, user_cache


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def homeless(monkeypatch):
    """A user without HOME and without an entry among the users, as in some containers."""

    def unknown(_):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def touch(*names):
    for name in names:
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).touch()


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("a[v2].tar", ["a[v2].tar"]),  # not a2.tar, which it would fit
        ("b[v2]/*.tar", ["b[v2]/1.tar", "b[v2]/2.tar"]),
        ("b[v2]/1.tar", ["b[v2]/1.tar"]),
        ("b[v2]", ["b[v2]/1.tar", "b[v2]/2.tar"]),
        ("b[v2]/[12].tar", ["b[v2]/1.tar", "b[v2]/2.tar"]),
        ("b[v2]/?.tar", ["b[v2]/1.tar", "b[v2]/2.tar"]),
        ("c*/x.tar", ["c*/x.tar"]),  # not cc/x.tar
        ("c?/x.tar", ["c*/x.tar", "cc/x.tar"]),
        ("b*/1.tar", ["b[v2]/1.tar", "b2/1.tar"]),
        ("*/[x].tar", ["d/[x].tar", "c*/x.tar", "cc/x.tar"]),
        ("a[2].tar", ["a2.tar"]),
        ("./a2.tar", ["a2.tar"]),
        ("b2/../a?.tar", ["b2/../a2.tar"]),
    ],
)
def test_what_exists_is_literal_and_what_does_not_is_a_pattern(here, pattern, files):
    touch(
        "a[v2].tar", "a2.tar", "b[v2]/1.tar", "b[v2]/2.tar", "b2/1.tar", "c*/x.tar", "cc/x.tar", "d/[x].tar"
    )
    (here / "b2" / "9.tar").mkdir()  # a folder that a pattern fits is no file
    assert expand(pattern) == sorted(map(pathlib.Path, files), key=os.fspath)
    assert expand(here / pattern) == sorted((here / file for file in files), key=os.fspath)


def test_hidden_files_are_meant_only_when_said(here):
    touch("s/.a.tar", "s/b.tar")
    assert expand("s/*.tar") == [pathlib.Path("s/b.tar")]
    assert expand("s/.*.tar") == [pathlib.Path("s/.a.tar")]


@pytest.mark.parametrize("pattern", ["none.tar", "no/*.tar", "a[", "a[v3].tar", "a2.tar/*"])
def test_nothing_there(here, pattern):
    touch("a2.tar")
    with pytest.raises(FileNotFoundError, match="no files at "):
        expand(pattern)


def test_home_directories(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    assert expand_home("~") == str(here / "home")
    assert as_path("~/a") == absolute("~/x/../a") == here / "home" / "a"
    assert expand_home("~root/a") == pwd.getpwnam("root").pw_dir + "/a"
    for literal in ("a/~", "a~", "./~", "", "gs://~/a", str(here / "~")):
        assert expand_home(literal) == literal
    touch("~notes.txt", "home/a.tar")
    assert as_path("~notes.txt").is_file()
    assert expand("~/*.tar") == [here / "home" / "a.tar"]


def test_an_unknown_home_directory_is_an_error_and_never_a_folder(here, homeless):
    for path in ("~", "~/a", "~no_such_user/a"):
        for function in (as_path, absolute, expand):
            with pytest.raises(ValueError, match=rf"^{path}: the home directory ~\w* is not known .*HOME"):
                function(path)
    assert user_cache({}) is None
    assert user_cache({"XDG_CACHE_HOME": "/x"}) == pathlib.Path("/x")


def test_the_users_cache(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert user_cache({}) == user_cache({"XDG_CACHE_HOME": "relative"}) == here / ".cache"
    assert user_cache({"XDG_CACHE_HOME": "~/c"}) == here / "c"


def test_absolute_paths_have_no_dots_and_mean_the_same_file(here):
    (here / "deep" / "real").mkdir(parents=True)
    (here / "link").symlink_to(here / "deep" / "real")
    assert absolute("a/../b") == here / "b"
    assert absolute("../" + here.name) == here
    assert absolute("./b/") == here / "b"
    assert absolute("link/../b") == here / "deep" / "b"  # as the system has it
    assert absolute("link/b") == here / "link" / "b"
    assert str(absolute("gs://bucket/a/../b")).startswith("gs://bucket/a")


def test_a_path_that_orbax_would_misread_has_a_link(here):
    for name in ("plain", "ünï c#o%20de", "q&a"):
        assert literal_path(here / name) == here / name
    for name in ("run[1]", "a*", "a?", "a\\b", "a\udce9"):
        link = literal_path(here / name)
        assert link.resolve() == here / name
        assert link == literal_path(here / name)
        assert not set("*?[\\") & set(str(link))
