"""Files into the workspace."""

import base64
import hashlib
import os
import pwd
import tarfile

import pytest
from autovibe_agent import workspace
from autovibe_agent.hand_over import TooLarge, pack
from autovibe_agent.paths import User


@pytest.fixture
def user(tmp_path):
    entry = pwd.getpwuid(os.geteuid())
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, tmp_path)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "workspace"
    path.mkdir()
    return path


def given(path, content=b"x", mode=None):
    return {"path": path, "content_base64": base64.b64encode(content).decode(), "mode": mode}


def test_files_are_written_with_their_folders_and_modes(folder, user):
    files = [given("a/b/c.txt", b"hello", "0600"), given("run.sh", b"#!", 0o755), given("plain")]
    assert workspace.write_files(folder, files, user) == 3
    assert (folder / "a/b/c.txt").read_bytes() == b"hello"
    modes = [(folder / name).stat().st_mode & 0o7777 for name in ("a/b/c.txt", "run.sh", "plain")]
    assert modes == [0o600, 0o755, 0o644]


def test_special_mode_bits_are_dropped(folder, user):
    workspace.write_files(folder, [given("s", mode="6755")], user)
    assert (folder / "s").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/x", "", ".", "..", "a/", "a\0b", "a/" * 600 + "x", None, 7]
)
def test_a_path_that_leaves_the_workspace_is_refused_before_anything_is_written(folder, user, path):
    with pytest.raises(workspace.UnsafePath):
        workspace.write_files(folder, [given("first"), given(path)], user)
    assert list(folder.iterdir()) == []


def test_links_that_an_earlier_agent_left_are_not_followed(folder, user, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (folder / "out").symlink_to(outside)
    (folder / "file").symlink_to(outside / "kept")
    with pytest.raises(workspace.UnsafePath):
        workspace.write_files(folder, [given("out/x")], user)
    workspace.write_files(folder, [given("file", b"new")], user)
    assert (outside / "kept").read_text() == "kept"
    assert not (folder / "file").is_symlink()
    assert os.listdir(outside) == ["kept"]


@pytest.mark.parametrize("content", ["!", None, "YQ"])
def test_content_that_is_no_base64_is_refused(folder, user, content):
    with pytest.raises(ValueError, match="no valid content"):
        workspace.write_files(folder, [{"path": "x", "content_base64": content}], user)


def test_files_and_folders_are_deleted_and_links_are_not_followed(folder, user, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (folder / "full/below").mkdir(parents=True)
    (folder / "full/below/file").touch()
    (folder / "full/link").symlink_to(outside)
    (folder / "file").touch()
    (folder / "out").symlink_to(outside)
    removals = [{"path": path, "delete": True} for path in ("full", "file", "out", "not/there")]
    assert workspace.write_files(folder, [*removals, given("full")], user) == 5
    assert os.listdir(folder) == ["full"]
    assert (outside / "kept").read_text() == "kept"
    (folder / "out").symlink_to(outside)
    with pytest.raises(workspace.UnsafePath):
        workspace.write_files(folder, [{"path": "out/kept", "delete": True}], user)
    with pytest.raises(workspace.UnsafePath):
        workspace.write_files(folder, [{"path": "../outside", "delete": True}], user)
    assert (outside / "kept").read_text() == "kept"


def test_a_workspace_is_packed_by_its_user(folder, user, tmp_path):
    (folder / "a").mkdir()
    (folder / "a/--odd name").write_bytes(b"x" * 1000)
    (folder / "left out").touch()
    archive = tmp_path / "w.tar.gz"
    sha256, size = pack(folder, ["a/--odd name"], user, archive)
    assert (hashlib.sha256(archive.read_bytes()).hexdigest(), archive.stat().st_size) == (sha256, size)
    with tarfile.open(archive) as opened:
        assert opened.getnames() == ["./a/--odd name"]
    with pytest.raises(TooLarge):
        pack(folder, ["a/--odd name"], user, archive, limit=10)
    with pytest.raises(OSError, match="tar ended with 2"):
        pack(folder, ["not there"], user, archive)
