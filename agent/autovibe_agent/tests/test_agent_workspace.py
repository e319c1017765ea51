"""Files into the workspace, and its manifest."""

import base64
import hashlib
import os
import pwd
from pathlib import Path

import pytest
from autovibe_agent import workspace
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


def test_the_manifest_lists_regular_files(folder, tmp_path):
    (folder / "a").mkdir()
    (folder / "a/x").write_bytes(b"hello")
    (folder / "a/x").chmod(0o640)
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "linked-folder").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    for path in (".git/objects/ab", ".git/refs"):
        (folder / path).mkdir(parents=True)
        (folder / path / "file").write_text("x")
    taken = workspace.Manifest(folder).take()
    assert taken["truncated"] is False
    files = {entry.pop("path"): entry for entry in taken["files"]}
    assert set(files) == {"a/x", ".git/refs/file"}
    assert files["a/x"] == {"size": 5, "sha256": hashlib.sha256(b"hello").hexdigest(), "mode": "0640"}


def test_the_manifest_is_bounded(folder, monkeypatch):
    for number in range(5):
        (folder / f"{number}").write_text("12345")
    monkeypatch.setattr(workspace, "MAX_HASHED_FILE", 4)
    assert {entry["sha256"] for entry in workspace.Manifest(folder).take()["files"]} == {None}
    monkeypatch.setattr(workspace, "MAX_FILES", 3)
    taken = workspace.Manifest(folder).take()
    assert (len(taken["files"]), taken["truncated"]) == (3, True)


def test_a_file_is_hashed_again_only_when_it_changed(folder):
    path = folder / "x"
    path.write_text("one")
    manifest = workspace.Manifest(folder)
    first = manifest.take()
    assert manifest.take() == first
    path.write_text("other")
    assert manifest.take()["files"][0]["sha256"] == hashlib.sha256(b"other").hexdigest()


def test_a_name_that_is_no_unicode_is_listed(folder):
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe")).write_text("x")
    (name,) = [entry["path"] for entry in workspace.Manifest(folder).take()["files"]]
    assert name.encode()
