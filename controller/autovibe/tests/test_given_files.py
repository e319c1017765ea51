"""Files for a workspace out of archives and repositories, some of which mean harm."""

import base64
import io
import subprocess
import tarfile

import pytest
from autovibe import given_files
from autovibe.errors import Invalid
from autovibe.tests.ports import free_port


def tar(*members, mode="w:gz"):
    """An archive of (name, content) or of TarInfo."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member, io.BytesIO(b"0" * member.size))
            else:
                info = tarfile.TarInfo(member[0])
                info.size, info.mode = len(member[1]), 0o4755
                archive.addfile(info, io.BytesIO(member[1]))
    packed.seek(0)
    return packed


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_an_archive_gives_its_files(mode):
    folder = special("./a", tarfile.DIRTYPE)
    found = given_files.from_tar(tar(folder, ("./a/b.sh", b"#!"), ("c", b""), mode=mode))
    assert [(file["path"], base64.b64decode(file["content_base64"]), file["mode"]) for file in found] == [
        ("a/b.sh", b"#!", "0755"),
        ("c", b"", "0755"),
    ]


HARM = {
    "traversal": ("../x", b""),
    "traversal inside": ("a/../../x", b""),
    "absolute": ("/etc/passwd", b""),
    "link": special("link", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": special("link", tarfile.LNKTYPE, "/etc/passwd"),
    "device": special("null", tarfile.CHRTYPE),
    "pipe": special("pipe", tarfile.FIFOTYPE),
    "no text": ("\udcff", b""),
}


@pytest.mark.parametrize("name", HARM)
def test_an_archive_that_means_harm_is_refused(name):
    with pytest.raises(Invalid):
        given_files.from_tar(tar(("good", b"x"), HARM[name]))


def test_a_bomb_is_refused_before_it_is_unpacked():
    bomb = tarfile.TarInfo("zeros")
    bomb.size = given_files.TOTAL_BYTES + 1
    packed = tar(bomb)
    assert len(packed.getvalue()) < 50_000
    with pytest.raises(Invalid, match="more than 8 MiB"):
        given_files.from_tar(packed)


def test_too_many_files_are_refused(monkeypatch):
    monkeypatch.setattr(given_files, "FILES", 3)
    with pytest.raises(Invalid, match="3 files"):
        given_files.from_tar(tar(*((str(number), b"") for number in range(4))))


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b" + b"0" * 100])
def test_what_is_no_archive_is_said_to_be_none(content):
    with pytest.raises(Invalid, match="cannot be read"):
        given_files.from_tar(io.BytesIO(content))


@pytest.fixture
def repository(tmp_path):
    """A repository that git itself serves on loopback: its URL."""
    work = tmp_path / "served" / "one"
    work.mkdir(parents=True)

    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *identity, *words], cwd=work, check=True, capture_output=True)

    git("init")
    (work / "run.sh").write_text("#!/bin/sh\n")
    (work / "run.sh").chmod(0o755)
    (work / "link").symlink_to("/etc/passwd")
    git("add", ".")
    git("commit", "-m", "one")
    git("tag", "first")
    (work / "second").write_text("2")
    git("add", ".")
    git("commit", "-m", "two")
    port = free_port()
    command = ["git", "daemon", "--export-all", "--listen=127.0.0.1", f"--port={port}", f"--base-path={work.parent}"]
    daemon = subprocess.Popen([*command, "--reuseaddr", str(work.parent)], start_new_session=True)
    try:
        yield f"git://127.0.0.1:{port}/one"
    finally:
        subprocess.run(["kill", "-TERM", "--", f"-{daemon.pid}"], check=False)
        daemon.wait()


def test_a_repository_gives_its_files_at_a_ref(repository, until_git):
    found = until_git(lambda: given_files.from_git(repository))
    files = {file["path"]: (base64.b64decode(file["content_base64"]), file["mode"]) for file in found}
    assert files["run.sh"] == (b"#!/bin/sh\n", "0775") or files["run.sh"] == (b"#!/bin/sh\n", "0755")
    # A link is a file that says where it pointed: nothing in the guest follows it.
    assert files["link"][0] == b"/etc/passwd"
    assert "second" in files
    assert "second" not in {file["path"] for file in given_files.from_git(repository, "first")}
    with pytest.raises(Invalid, match="git cannot get it"):
        given_files.from_git(repository, "no-such-branch")


def test_a_repository_that_grows_without_end_is_not_written_to_the_disk(repository, until_git, monkeypatch):
    until_git(lambda: given_files.from_git(repository))
    monkeypatch.setattr(given_files, "GIT_BYTES", 8 << 10)
    with pytest.raises(Invalid, match="larger than"):
        given_files.from_git(repository)


@pytest.fixture
def until_git():
    """Tries until git's own server listens."""
    import time

    def until(action, seconds=60):
        end = time.monotonic() + seconds
        while True:
            try:
                return action()
            except Invalid:
                assert time.monotonic() < end
                time.sleep(0.05)

    return until


@pytest.mark.parametrize("url", ["file:///etc", "/etc", "ext::sh -c id", "--upload-pack=id", "-x"])
def test_a_url_that_names_this_computer_is_refused(url):
    with pytest.raises(Invalid):
        given_files.from_git(url)
