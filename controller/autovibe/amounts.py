"""Amounts of money as people read them."""

from __future__ import annotations

from decimal import Decimal


def cad(amount: Decimal) -> str:
    """In Canadian dollars, to a hundredth of a cent."""
    return f"{amount:.4f}".rstrip("0").rstrip(".") if amount else "0"
