"""What retention keeps, whatever the tree looks like."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from autovibe.policies import Keeping
from autovibe.retention import Node, sorted_out
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
POLICIES = st.builds(
    Keeping, days=st.integers(0, 10), daily=st.integers(0, 40), weekly=st.integers(0, 30), parents=st.booleans()
)


@st.composite
def trees(draw):
    """Lines of checkpoints, each begun at a node of an earlier one; some with a pin, a branch or a rollback."""
    nodes = []
    for line in range(draw(st.integers(1, 4))):
        start = draw(st.sampled_from(nodes)).uuid if nodes else None
        parent, mine = start, []
        for hours in sorted(draw(st.lists(st.integers(0, 24 * 300), max_size=12)), reverse=True):
            if mine and draw(st.booleans()) and draw(st.booleans()):
                parent = draw(st.sampled_from(mine)).uuid
            node = Node(
                UUID(int=len(nodes) + 1),
                parent,
                UUID(int=1000 + line),
                NOW - timedelta(hours=hours),
                draw(st.sampled_from([None, None, None, "milestone"])),
                draw(st.sampled_from([0, 0, 0, 1])),
            )
            nodes.append(node)
            mine.append(node)
            parent = node.uuid
    return nodes


def kept(nodes, policy):
    return {uuid for uuid, reason in sorted_out(nodes, policy, NOW).items() if reason is not None}


@settings(max_examples=50, deadline=None)
@given(trees(), POLICIES)
def test_never_one_that_is_branched_from_pinned_or_forked(nodes, policy):
    left = kept(nodes, policy)
    for node in nodes:
        children = [child for child in nodes if child.parent == node.uuid]
        if node.pinned or node.branches or len(children) > 1 or any(child.line != node.line for child in children):
            assert node.uuid in left
        if policy.parents and children:
            assert node.uuid in left


@settings(max_examples=50, deadline=None)
@given(trees(), POLICIES)
def test_all_that_is_recent_and_something_of_each_day_and_week(nodes, policy):
    left = kept(nodes, policy)
    for node in nodes:
        age = NOW - node.at
        line = [one for one in nodes if one.line == node.line and one.uuid in left]
        if age < timedelta(days=policy.days):
            assert node.uuid in left
        if age < timedelta(days=policy.daily):
            assert any(one.at.date() == node.at.date() for one in line)
        if age < timedelta(weeks=policy.weekly):
            assert any(one.at.isocalendar()[:2] == node.at.isocalendar()[:2] for one in line)


@settings(max_examples=50, deadline=None)
@given(trees(), POLICIES)
def test_no_more_than_the_policy_says(nodes, policy):
    reasons = sorted_out(nodes, policy, NOW)
    by_uuid = {node.uuid: node for node in nodes}
    for rule, period in (("daily", datetime.date), ("weekly", lambda at: at.isocalendar()[:2])):
        mine = [by_uuid[uuid] for uuid, reason in reasons.items() if reason == rule]
        assert len({(node.line, period(node.at)) for node in mine}) == len(mine)
    for uuid, reason in reasons.items():
        if reason in ("recent", "daily", "weekly"):
            reach = {"recent": timedelta(days=policy.days), "daily": timedelta(days=policy.daily)}
            assert NOW - by_uuid[uuid].at < reach.get(reason, timedelta(weeks=policy.weekly))


@settings(max_examples=50, deadline=None)
@given(trees(), POLICIES)
def test_whoever_is_the_newest_of_its_period_is_the_one_that_stays(nodes, policy):
    reasons = sorted_out(nodes, policy, NOW)
    for node in nodes:
        if reasons[node.uuid] == "daily":
            newer = [
                one for one in nodes
                if one.line == node.line and one.at > node.at and one.at.date() == node.at.date()
            ]  # fmt: skip
            assert not newer


@settings(max_examples=50, deadline=None)
@given(trees(), POLICIES)
def test_what_is_kept_is_kept_again_while_something_stands_on_it(nodes, policy):
    reasons = sorted_out(nodes, policy, NOW)
    left = kept(nodes, policy)
    parents = {node.uuid: node.parent for node in nodes}

    def kept_parent(node):
        parent = node.parent
        while parent is not None and parent not in left:
            parent = parents[parent]
        return parent

    again = [
        Node(node.uuid, kept_parent(node), node.line, node.at, node.pinned, node.branches)
        for node in nodes
        if node.uuid in left
    ]
    assert {reasons[uuid] for uuid in left - kept(again, policy)} <= {"fork", "parent", "branched from"}


def test_the_default_is_a_week_a_month_and_half_a_year():
    line = UUID(int=7)
    nodes = [Node(UUID(int=n), UUID(int=n + 1), line, NOW - timedelta(hours=6 * n)) for n in range(4 * 365)]
    reasons = list(sorted_out(nodes, Keeping(), NOW).values())
    assert [reasons.count(reason) for reason in ("recent", "daily", "weekly")] == [28, 23, 22]


@pytest.mark.parametrize("at", [NOW, NOW - timedelta(days=3650)])
def test_what_no_machine_has_made_is_kept(at):
    assert kept([Node(UUID(int=1), None, None, at)], Keeping(0, 0, 0)) == {UUID(int=1)}
