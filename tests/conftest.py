"""Fixtures of the tests that span rooms."""

from collections.abc import Iterator

import pytest
from sites import RUNNING, Site, running_site


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failure's report shows what the real guests were doing: their consoles are gone afterwards."""
    report = yield
    if report.failed:
        for site in RUNNING:
            report.sections += site.guests()
    return report


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
