"""A lab of its own for every test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from autovibe_lab.tests.testing import Client, LabInThread


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabInThread]:
    lab = LabInThread(tmp_path / "lab")
    yield lab
    lab.close()


@pytest.fixture
def client(lab: LabInThread) -> Client:
    return Client(lab)
