"""The manifest of a workspace, and what it leaves out."""

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from autovibe_agent import ignore, manifest
from autovibe_agent.manifest import Manifest


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "workspace"
    path.mkdir()
    return path


def put(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x")


def paths(folder: Path) -> set[str]:
    return {entry["path"] for entry in Manifest(folder).take()["files"]}


def age(path: Path) -> None:
    """Let a file be older than its file system's clock can be wrong by."""
    then = time.time_ns() - 3600 * 10**9
    os.utime(path, ns=(then, then))


def test_the_manifest_lists_regular_files(folder):
    put(folder, "a/x", ".git/objects/ab/file", ".git/refs/file")
    (folder / "a/x").write_bytes(b"hello")
    (folder / "a/x").chmod(0o640)
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "linked-folder").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    taken = Manifest(folder).take()
    assert taken["truncated"] is False
    files = {entry.pop("path"): entry for entry in taken["files"]}
    assert set(files) == {"a/x", ".git/refs/file"}
    assert files["a/x"] == {"size": 5, "sha256": hashlib.sha256(b"hello").hexdigest(), "mode": "0640"}


def test_what_is_made_again_is_left_out_wherever_it_is(folder):
    put(
        folder,
        "node_modules/a.js",
        "web/node_modules/b/c.js",
        "src/__pycache__/m.pyc",
        "sub/.git/objects/o",
        "src/m.py",
    )
    assert paths(folder) == {"src/m.py"}


def test_the_workspace_says_itself_what_is_left_out(folder):
    put(folder, "data/big.bin", "data/keep.bin", "src/m.py", "node_modules/patched/x.js")
    (folder / ignore.FILE).write_text("*.bin\n!keep.bin\n!node_modules/\n")
    assert paths(folder) == {"data/keep.bin", "src/m.py", "node_modules/patched/x.js", ignore.FILE}


def test_a_link_to_a_list_of_patterns_is_not_followed(folder, tmp_path):
    put(folder, "kept")
    (tmp_path / "elsewhere").write_text("*\n")
    (folder / ignore.FILE).symlink_to(tmp_path / "elsewhere")
    assert paths(folder) == {"kept"}


TREE = (
    "a.txt",
    "b.log",
    "doc/a.txt",
    "doc/b.log",
    "doc/deep/er/a.txt",
    "src/doc/x.c",
    "src/[x].c",
    "sp ace/x",
    "build",
)
TREE += ("out/build", "out/b/c/d", "!bang", "#hash", "x/y/z/a1", "x/y/z/b2", "foo/bar", "foo/baz/bar")


@pytest.mark.parametrize(
    "patterns",
    [
        "*.log",
        "/a.txt",
        "doc/",
        "doc/*",
        "doc/**",
        "**/doc",
        "doc/**/a.txt",
        "*\n!src/\n!src/**",
        "*.txt\n!doc/a.txt",
        "doc\n!doc/a.txt",
        "build/",
        "out/b*",
        "foo/**/bar",
        "x/*/z",
        "[a-b].*",
        "[!a].log",
        "[^a].log",
        "src/\\[x\\].c",
        "\\!bang\n\\#hash",
        "# a comment\n\n   \nsp ace/x",
        "a.txt   ",
        "?.log",
        "x/y/z/[ab][12]",
        "**",
        "/*\n!/foo",
        "foo/bar\\",
        "a[",
        "src//doc",
        "a.txt/",
        "*a*",
        "d**r",
    ],
)
def test_patterns_mean_what_they_mean_to_git(folder, patterns, tmp_path):
    put(folder, *TREE)
    rules = tmp_path / "rules"
    rules.write_text(patterns + "\n")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    command = ["git", "-C", str(folder), "ls-files", "-z", "--others", f"--exclude-from={rules}"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wanted = {path for path in listed.split("\0") if path}
    (folder / ignore.FILE).write_text(patterns + "\n")
    (folder / ".git").rename(tmp_path / "git")
    assert paths(folder) - {ignore.FILE} == wanted


def test_a_pattern_that_costs_too_much_is_none():
    begun = time.monotonic()
    assert not ignore.Ignore(["*a" * 40]).matches("a" * 1000 + "b", False)
    assert time.monotonic() - begun < 30


def test_the_manifest_is_bounded(folder, monkeypatch):
    for number in range(5):
        (folder / f"{number}").write_text("12345")
    monkeypatch.setattr(manifest, "MAX_HASHED_FILE", 4)
    assert {entry["sha256"] for entry in Manifest(folder).take()["files"]} == {None}
    monkeypatch.setattr(manifest, "MAX_FILES", 3)
    taken = Manifest(folder).take()
    assert (len(taken["files"]), taken["truncated"]) == (3, True)


def test_a_manifest_of_long_names_stays_below_what_the_hub_takes(folder, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_BYTES", 100_000)
    for number in range(400):
        (folder / f"{number:03}{chr(1) * 200}").write_text("")
    taken = Manifest(folder).take()
    assert taken["truncated"] is True
    assert 50_000 < len(json.dumps(taken, separators=(",", ":"), ensure_ascii=False).encode()) <= 100_000


def test_a_file_is_hashed_again_only_when_it_changed(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        manifest, "_read", lambda name, at, really=manifest._read: (read.append(name), really(name, at))[1]
    )
    monkeypatch.setattr(manifest, "_SETTLED_NS", 0)
    put(folder, "x", "y")
    taker = Manifest(folder)
    first = taker.take()
    assert (taker.take(), sorted(read)) == (first, ["x", "y"])
    (folder / "x").write_text("z")
    # Its size and its time of change are as they were, but not the time at which they were set.
    age(folder / "x")
    assert taker.take()["files"][0]["sha256"] == hashlib.sha256(b"z").hexdigest()
    assert sorted(read) == ["x", "x", "y"]


def test_a_file_that_changes_within_one_tick_is_read_again(folder):
    path = folder / "x"
    path.write_text("one")
    taker = Manifest(folder)
    taker.take()
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert taker.take()["files"][0]["sha256"] == hashlib.sha256(b"two").hexdigest()


def test_a_name_that_is_no_unicode_is_listed(folder):
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe")).write_text("x")
    (name,) = paths(folder)
    assert name.encode()


def test_a_workspace_that_is_gone_has_no_files(folder):
    folder.rmdir()
    assert Manifest(folder).take() == {"files": [], "truncated": False}
