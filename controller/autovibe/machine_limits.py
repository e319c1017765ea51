"""What one machine may cost, beside its project's budgets. `reserve_budgets` holds both: exact, whoever reserves."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy.orm import Session

from autovibe import budgets, ledger
from autovibe.errors import Invalid
from autovibe.models import Machine
from autovibe.settings import Settings


def check(settings: Settings, max_cad: Decimal | None) -> None:
    """Invalid for a limit with which no machine would start, or that is no amount of money."""
    if max_cad is not None and ledger.amount_of(max_cad, "limit") < settings.min_spawn_cad:
        raise Invalid(f"A machine may cost CAD {_plain(settings.min_spawn_cad)} at least, not {max_cad}")


def go_on(session: Session, settings: Settings, machine: Machine, max_cad: Decimal | None) -> None:
    """Let the machine cost `max_cad` altogether (None: what it might before); MachineLimit when it has cost that."""
    check(settings, max_cad)
    if max_cad is not None:
        machine.max_cad = max_cad
        session.flush()
    left = budgets.machine_left(session, machine)
    if left is not None and left < settings.min_spawn_cad:
        message = f"Machine {machine.name} has CAD {_plain(left)} left of its limit of {_plain(machine.max_cad)}"
        raise budgets.MachineLimit(left, message)


def _plain(amount: Decimal) -> str:
    return format(amount.normalize(), "f")
