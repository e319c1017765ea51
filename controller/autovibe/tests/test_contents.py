"""Comparing what machines chose to write takes neither memory nor time without end."""

import difflib
import math
import random
import time

import pytest
from autovibe import contents


def files(*given):
    return {"path": "a", "size": len(given[0]), "sha256": "1"}, {"path": "a", "size": len(given[1]), "sha256": "2"}


def test_a_file_of_very_many_lines_is_not_compared(monkeypatch):
    old, new = files(b"x", b"x")
    known = {"1": b"a\n" * 10, "2": b"b\n" * 11}
    assert contents._lines(old, new, known, math.inf)[0] == "--- a/a"
    monkeypatch.setattr(contents, "LINES", 10)
    assert contents._lines(old, new, known, math.inf) == ["a: too many lines to be compared"]


def test_lines_that_take_hours_to_compare_are_given_up():
    """Each match is one line long, the first one of the rest, and may stand at many places."""
    old = [line for number in range(10_000) for line in (f"u{number}", f"p{number % 51}")]
    new = [line for number in range(10_000) for line in (f"v{number}", f"p{number % 51}")]
    with pytest.raises(contents._OutOfTime):
        contents._changes(old, new, time.monotonic() + 0.05)


@pytest.mark.parametrize("seed", range(20))
def test_the_hunks_are_those_of_the_standard_library(seed):
    some = random.Random(seed)
    old, new = ([some.choice("abcdefgh") for _ in range(some.randrange(60))] for _ in range(2))
    theirs = list(difflib.unified_diff(old, new, lineterm=""))[2:]
    assert contents._changes(old, new, math.inf) == theirs
