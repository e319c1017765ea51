"""An ordered list of rules is brought to another one, whatever they are, and with few writes."""

from __future__ import annotations

import pytest
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.firewall import cidr
from ansible_collections.autovibe.proxmox.plugins.module_utils.pve.rules import edits, normal
from hypothesis import given
from hypothesis import strategies as st

LISTS = st.lists(st.integers(0, 9), max_size=8)


def rules(numbers):
    return [
        normal({"type": "in", "action": "ACCEPT", "proto": "tcp", "dport": number, "enable": 1}) for number in numbers
    ]


def after(current, made):
    for edit in made:
        current = edit.applied(current)
    return current


@given(LISTS, LISTS)
def test_any_list_becomes_any_other(current, wanted):
    current, wanted = rules(current), rules(wanted)
    made = edits(current, wanted)
    assert after(current, made) == wanted
    assert len(made) <= len(current) + 2 * len(wanted)
    # A move before itself would lose the rule on a node.
    assert all(edit.to not in (edit.position, edit.position + 1) for edit in made if edit.kind == "move")


@given(st.lists(st.integers(0, 9), max_size=8, unique=True), st.data())
def test_one_drift_is_one_write(wanted, data):
    wanted = rules(wanted)
    if not wanted:
        return
    at = data.draw(st.integers(0, len(wanted) - 1))
    edited = [*wanted[:at], {**wanted[at], "dport": "99"}, *wanted[at + 1 :]]
    added = [*wanted[:at], *rules([77]), *wanted[at:]]
    moved = wanted[:at] + wanted[at + 1 :] + [wanted[at]]
    for drifted in (edited, added, moved):
        assert len(edits(drifted, wanted)) == (drifted != wanted)


@pytest.mark.parametrize(
    ("current", "wanted", "count"),
    [
        ([], [1, 2, 3, 4], 4),  # each goes to position 0: from the last one on, none is moved
        ([1], [1, 2, 3, 4], 4),  # rather the one that is there is moved than all the others
        ([1, 2, 3], [1, 3], 1),
        ([1, 2, 3], [], 3),
        ([1, 2, 3, 4], [1, 2, 9, 3, 4], 2),  # to position 0, and then to its place
        ([4, 3, 2, 1], [1, 2, 3, 4], 3),
    ],
)
def test_the_number_of_writes(current, wanted, count):
    assert len(edits(rules(current), rules(wanted))) == count


def test_deletions_come_first():
    made = edits(rules([1, 2, 3]), rules([3, 1]))
    assert [edit.kind for edit in made] == ["delete", "move"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [("10.0.0.1/32", "10.0.0.1"), ("10.1.2.3/16", "10.1.0.0/16"), ("FD00:0:0::1", "fd00::1"), ("GW", "gw")],
)
def test_addresses_are_compared_in_one_form(text, normal):
    assert cidr(text) == normal
