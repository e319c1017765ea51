"""How an amount is divided by greediness: within bounds, exactly, and never more than there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction


@dataclass(frozen=True)
class Member:
    """What counts when a pool is shared. `committed`: used and held, but for an overrun, which is `debt`."""

    committed: Decimal
    greediness: Decimal
    active: bool
    debt: Decimal = Decimal(0)
    floor: Decimal = Decimal(0)
    cap: Decimal | None = None


def shares(amount: Decimal, members: Sequence[Member]) -> list[Decimal]:
    """Each member's share of a pool, at nine decimals.

    Nobody's is below what it has committed. Then, as far as the pool reaches: debts are paid; floors are kept; the
    active ones divide the rest so that their shares are in proportion to their greediness, but for what is committed,
    floors and caps. Their sum is at most the pool, unless more than that was committed.
    """
    found = [member.committed for member in members]
    left = amount - sum(found)
    for wanted in (
        [member.debt for member in members],
        [max(Decimal(0), member.floor - member.committed - member.debt) for member in members],
    ):
        given = _parts(left, wanted)
        found = [share + more for share, more in zip(found, given, strict=True)]
        left -= sum(given)
    greedy = [place for place, member in enumerate(members) if member.active and member.greediness > 0]
    if left > 0 and greedy:
        level = _level(left, [(found[place], members[place]) for place in greedy])
        for place in greedy:
            found[place] = _rounded(_at_level(level, found[place], members[place]))
    return found


def _parts(left: Decimal, wanted: list[Decimal]) -> list[Decimal]:
    """What each one gets of what it wants: all of it, or in proportion as far as it reaches."""
    total = sum(wanted, Decimal(0))
    if total <= max(left, Decimal(0)):
        return wanted
    if left <= 0:
        return [Decimal(0)] * len(wanted)
    return [_rounded(Fraction(left) * Fraction(one) / Fraction(total)) for one in wanted]


def _at_level(level: Fraction, least: Decimal, member: Member) -> Fraction:
    fair = level * Fraction(member.greediness)
    return max(Fraction(least), fair if member.cap is None else min(fair, Fraction(member.cap)))


def _level(left: Decimal, members: Sequence[tuple[Decimal, Member]]) -> Fraction:
    """The level at which the shares `level * greediness`, each within its bounds, use up what is left.

    Their sum grows with the level, in straight pieces: the last bend below what there is, and from there on.
    """
    there_is = Fraction(left) + sum(Fraction(least) for least, _ in members)
    bounds = [(Fraction(least), Fraction(member.greediness)) for least, member in members]
    bounds += [(Fraction(member.cap), Fraction(member.greediness)) for _, member in members if member.cap is not None]

    def total(level: Fraction) -> Fraction:
        return sum((_at_level(level, least, member) for least, member in members), Fraction(0))

    low = max(
        (bend for bend in {bound / greed for bound, greed in bounds} if total(bend) <= there_is), default=Fraction(0)
    )
    growing = Fraction(0)
    for least, member in members:
        fair = low * Fraction(member.greediness)
        if fair >= least and (member.cap is None or fair < member.cap):
            growing += Fraction(member.greediness)
    return low + (there_is - total(low)) / growing if growing else low


def _rounded(amount: Fraction) -> Decimal:
    """Down to nine decimals: what is shared is never more than there is."""
    return Decimal(amount * 10**9 // 1) / 10**9
