"""Archives that no tar writes: whoever reads one, from a guest or a person, uses neither memory nor time for it."""

import bz2
import gzip
import lzma
import tarfile
import tracemalloc
from contextlib import suppress
from functools import partial

import pytest
from autovibe import given_files, workspaces
from autovibe.errors import Invalid


def packed(*blocks):
    """An archive out of raw blocks, as no tar writes it."""
    return gzip.compress(b"".join(block + b"\0" * (-len(block) % 512) for block in blocks) + b"\0" * 1024)


def header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def a_long_name():
    return packed(header("x", 1 << 20, tarfile.XHDTYPE), b"9 path=x\n" * (1 << 17), header("x", 0))


def many_long_names():
    one = [header("x", 1 << 20, tarfile.XHDTYPE), b"\0" * (1 << 20)]
    return packed(*one * 3, header("x", 0))


def a_size_below_zero():
    raw = bytearray(header("x", 0))
    raw[124:136] = b"\xff" * 10 + (2**16 - 512).to_bytes(2, "big")
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + 256 + sum(raw[156:512]))
    return packed(header("before", 0), bytes(raw))


def more_than_it_says():
    return packed(header("x", 40 * 2**20), b"\0" * (40 * 2**20))


def folders_without_end():
    return packed(*[header(f"{number}/", 0, tarfile.DIRTYPE) for number in range(20_000)])


def a_sparse_file():
    """One block that says to be a file of a terabyte, most of it holes."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[483:495] = b"%011o\0" % 2**33
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + 256 + sum(raw[156:512]))
    return packed(bytes(raw))


def sparse_maps_without_end():
    """A header that goes on and on about where its holes are."""
    info = tarfile.TarInfo("x")
    info.type = tarfile.GNUTYPE_SPARSE
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[482] = 1
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + 256 + sum(raw[156:512]))
    return packed(bytes(raw), *[b"\0" * 504 + b"\1"] * 4096)


HARM = [
    a_long_name,
    many_long_names,
    a_size_below_zero,
    more_than_it_says,
    folders_without_end,
    a_sparse_file,
    sparse_maps_without_end,
]


@pytest.mark.parametrize("read", [workspaces.listed, given_files.from_tar])
@pytest.mark.parametrize("made", HARM)
def test_an_archive_takes_neither_memory_nor_time(made, read, tmp_path, monkeypatch):
    monkeypatch.setattr(workspaces, "UNPACKED_BYTES", 2**20)
    monkeypatch.setattr(workspaces, "MEMBERS", 10_000)
    monkeypatch.setattr(given_files, "TOTAL_BYTES", 2**20)
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(made())
    # Python before 3.11.4 takes a size below zero for the archive's end.
    refused = suppress(Invalid) if made is a_size_below_zero else pytest.raises(Invalid)
    tracemalloc.start()
    try:
        with refused:
            read(archive)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("read", [workspaces.listed, given_files.from_tar])
def test_one_that_is_cut_off_is_said_to_be(pack, read, tmp_path):
    content = pack(gzip.decompress(packed(header("x", 100_000), bytes(range(256)) * 391)))
    archive = tmp_path / "archive"
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(Invalid, match="cannot be read"):
        read(archive)


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, partial(lzma.compress, format=lzma.FORMAT_ALONE)])
def test_guests_pack_by_gzip_alone(pack, tmp_path):
    """A few kilobytes of xz ask for gigabytes of memory."""
    archive = tmp_path / "archive"
    archive.write_bytes(pack(gzip.decompress(packed(header("x", 3), b"abc"))))
    assert [one["path"] for one in given_files.from_tar(archive)] == ["x"]
    with pytest.raises(Invalid, match="cannot be read"):
        workspaces.listed(archive)
