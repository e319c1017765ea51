"""Manifests are packed without loss, read only when they are asked for, and compared."""

import hashlib

import sqlalchemy as sa
from autovibe import db, manifests
from autovibe.models import Checkpoint
from autovibe.tests import world
from hypothesis import given
from hypothesis import strategies as st

HASHES = st.none() | st.integers(0, 3).map(lambda number: f"{number:064x}")
FILES = st.fixed_dictionaries(
    {"size": st.integers(0, 3), "sha256": HASHES, "mode": st.sampled_from(["0644", "0755", None])}
)
PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=5)


@st.composite
def any_manifest(draw):
    files = draw(st.dictionaries(PATHS | st.sampled_from("abcde"), FILES, max_size=8))
    listed = [{"path": path, **files[path]} for path in sorted(files)]
    return {"files": listed, "truncated": draw(st.booleans())}


def of(**files):
    """A manifest of files given as (size, sha256, mode)."""
    return {
        "files": [
            dict(zip(("path", "size", "sha256", "mode"), (path, *file), strict=True)) for path, file in files.items()
        ],
        "truncated": False,
    }


@given(any_manifest())
def test_what_is_packed_is_unpacked_again(manifest):
    assert manifests.unpack(manifests.pack(manifest)) == manifest


def test_no_manifest_is_no_row_value():
    assert manifests.pack({}) is manifests.pack(None) is None
    assert manifests.unpack(None) == {}


def test_a_large_manifest_gets_small():
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(5000)]
    manifest = of(**{f"src/package/module_{n}.py": (n, digest, "0644") for n, digest in enumerate(hashes)})
    assert len(manifests.pack(manifest)) < 50 * 5000


@given(any_manifest(), any_manifest())
def test_a_diff_says_what_has_to_be_done(before, after):
    found = manifests.diff(before, after)
    files = {file["path"]: file for file in before["files"]}
    for file in found.removed:
        del files[file["path"]]
    for file in [*found.added, *(pair[1] for pair in found.changed + found.mode)]:
        files[file["path"]] = file
    wanted = {file["path"]: file for file in after["files"]}
    unread = set(found.unread)
    assert files.keys() == wanted.keys()
    assert all(files[path] == wanted[path] for path in wanted if path not in unread)
    assert found.stat()["bytes"] == sum(f["size"] for f in after["files"]) - sum(f["size"] for f in before["files"])


@given(any_manifest())
def test_nothing_differs_from_itself(manifest):
    assert not manifests.diff(manifest, manifest)


def test_a_diff_tells_content_from_mode_and_from_what_nobody_has_read():
    before = of(
        same=(1, "a" * 64, "0644"), content=(1, "a" * 64, "0644"), mode=(1, "a" * 64, "0644"), huge=(9, None, "0644")
    )
    after = of(
        same=(1, "a" * 64, "0644"), content=(1, "b" * 64, "0644"), mode=(1, "a" * 64, "0755"), huge=(9, None, "0644")
    )
    found = manifests.diff(before, after)
    assert [pair[1]["path"] for pair in found.changed] == ["content"]
    assert [pair[1]["path"] for pair in found.mode] == ["mode"]
    assert found.unread == ["huge"]
    assert found.whole


def test_a_list_of_checkpoints_reads_no_manifest(settings):
    with db.session_scope(settings) as session:
        manifest = of(a=(1, None, "0644"))
        session.add(
            Checkpoint(project_uuid=world.project(session).uuid, checkpoint_type="manual", file_manifest=manifest)
        )
    with db.session_scope(settings) as session:
        (row,) = session.scalars(sa.select(Checkpoint))
        assert "file_manifest" not in row.__dict__
        assert (row.file_count, row.file_manifest) == (1, manifest)
