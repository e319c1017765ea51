"""Tar archives of somebody else's: read member by member, bounded in all that they say and grow to.

Nothing is unpacked here, and no link followed: what a member's name means is for who asks for it.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from autovibe.errors import Invalid

#: What may describe one member: its name, its link, its times.
HEADER_BYTES = 64 * 2**10
_GZIP = ((b"\x1f\x8b", gzip.open),)
#: xz asks for as much memory as the archive says, bzip2 for a lot of time.
_ANY = (*_GZIP, (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open), (b"\x5d\x00\x00", lzma.open))


class TooMuchInIt(Invalid):
    """The archive has more in it than a workspace may have."""


@dataclass(frozen=True)
class Bounds:
    """How much an archive may have in it: bytes of all files together, unpacked; members, folders among them."""

    unpacked: int
    members: int


class Members:
    """The members of an open archive, checked as they come. What is read of one is read before the next one comes."""

    def __init__(self, archive: tarfile.TarFile, stream: _Unpacked, bounds: Bounds) -> None:
        self._archive, self._stream, self._bounds = archive, stream, bounds

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        size = number = 0
        while (member := self._next()) is not None:
            size, number = size + member.size, number + 1
            if number > self._bounds.members or size > self._bounds.unpacked or member.size < 0:
                raise TooMuchInIt()
            yield member

    def content(self, member: tarfile.TarInfo) -> BinaryIO:
        """A regular file's content, to be read."""
        return self._archive.extractfile(member)

    def _next(self) -> tarfile.TarInfo | None:
        self._stream.header_left = HEADER_BYTES
        member = self._archive.next()
        self._archive.members.clear()
        self._stream.header_left = None
        return member


class _Unpacked:
    """The unpacked bytes of an archive, as tarfile reads them: bounded in all, and where they describe a member.

    tarfile believes a header about its own length, and remembers what it says.
    """

    def __init__(self, stream: BinaryIO, bounds: Bounds) -> None:
        self._stream = stream
        self._end = bounds.unpacked + bounds.members * 2 * tarfile.BLOCKSIZE
        #: What may still be read of the present header; None while a file's content is read.
        self.header_left: int | None = HEADER_BYTES

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int) -> bytes:
        if self.header_left is not None:
            self.header_left -= size
        if (self.header_left or 0) < 0:
            raise TooMuchInIt()
        self._check(self.tell() + size)
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        self._check(position)
        return self._stream.seek(position)

    def _check(self, position: int) -> None:
        if not 0 <= position <= self._end:
            raise TooMuchInIt()


@contextmanager
def opened(source: Path | BinaryIO, bounds: Bounds, *, of_guest: bool = False) -> Iterator[Members]:
    """The members of an archive, packed by gzip, bzip2, xz or not at all; Invalid when it cannot be read.

    Guests pack by gzip alone.
    """
    try:
        with _file(source) as file, _unpacking(file, _GZIP if of_guest else _ANY) as stream:
            unpacked = _Unpacked(stream, bounds)
            with tarfile.open(fileobj=unpacked, mode="r:") as archive:
                yield Members(archive, unpacked, bounds)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error, lzma.LZMAError) as error:
        raise Invalid(f"The archive cannot be read as a tar (packed by gzip, bzip2, xz or not): {error}") from None


@contextmanager
def _file(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield file
    else:
        yield source


@contextmanager
def _unpacking(file: BinaryIO, known: tuple[tuple[bytes, Callable[..., BinaryIO]], ...]) -> Iterator[BinaryIO]:
    begin = file.read(6)
    file.seek(0)
    for magic, unpack in known:
        if begin.startswith(magic):
            with unpack(file) as stream:
                yield stream
            return
    yield file
