"""The cluster that the tests of this folder share, started on first use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running Slurm cluster of four nodes; what a test breaks, it mends."""
    if reason := missing():
        pytest.skip(f"NO SLURM HERE, nothing of it was tested: {reason}")
    with Cluster() as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it aloud when the tests of this folder could not run."""
    if reason := missing():
        terminalreporter.write_line(f"NO SLURM HERE, tests/slurm was skipped: {reason}", red=True)
