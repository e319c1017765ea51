"""Fixtures of the tests that span rooms."""

from collections.abc import Iterator

import pytest
from sites import Site, running_site


@pytest.fixture(scope="module")
def null_site() -> Iterator[Site]:
    """A site whose guests are only records."""
    with running_site("--no-image") as site:
        yield site


@pytest.fixture(scope="module")
def vm_site() -> Iterator[Site]:
    """A site with real QEMU guests."""
    with running_site() as site:
        yield site
