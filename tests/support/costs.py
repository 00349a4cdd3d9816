"""What the slowest tests spend their time on: `pytest --slowest 30`, which `make test-slowest` runs."""

from __future__ import annotations

import resource
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import Any, cast

import pytest
from support.time_limits import PatientPopen
from support.warm_start import WarmPopen

_PROPERTY = "cost"
_CLUSTERS = ("cluster", "patient_cluster", "accounting_cluster", "new_cluster", "slurm_installed")


@dataclass(frozen=True)
class Cost:
    """What a test spent, with its fixtures.

    Args:
        seconds: From its beginning to its end.
        own: Processor seconds of pytest's process.
        programs: Processor seconds of the programs that have ended, without those that Slurm starts.
        forked: The number of programs that the test forked from the warm server.
        executed: The number of programs that the test executed.
        slurm: Whether it uses a cluster.
    """

    seconds: float
    own: float
    programs: float
    forked: int
    executed: int
    slurm: bool

    @property
    def waits_for(self) -> str:
        """Return what most of the time went to."""
        waiting = self.seconds - self.own - self.programs
        if self.slurm and waiting > self.seconds / 2:
            return "Slurm"
        if self.own >= max(self.programs, waiting):
            return "its own computing"
        if self.programs >= waiting or self.forked + self.executed:
            return f"{self.forked} forked and {self.executed} executed programs"
        return "limits and pauses"


class CostMeter:
    """The plugin that measures each test, and prints a table at the end.

    Args:
        count: The number of tests in the table.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._costs: dict[str, Cost] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Note what has been spent before the test."""
        item.stash[_BEFORE] = _spent()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Hand the cost to the process that prints, with the report of the test's last act."""
        report = yield
        if call.when == "teardown":
            now, before = _spent(), item.stash[_BEFORE]
            cost = Cost(
                seconds=now[0] - before[0],
                own=now[1] - before[1],
                programs=now[2] - before[2],
                forked=now[3] - before[3],
                executed=now[4] - before[4],
                slurm=any(name in _CLUSTERS for name in getattr(item, "fixturenames", ())),
            )
            report.user_properties.append((_PROPERTY, asdict(cost)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the costs from all processes."""
        for name, value in report.user_properties:
            if name == _PROPERTY and report.when == "teardown":
                self._costs[report.nodeid] = Cost(**cast("dict[str, Any]", value))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table."""
        write = terminalreporter.write_line
        terminalreporter.section(f"{self._count} slowest tests, in seconds")
        write(f"{'all':>6} {'own':>6} {'programs':>8}  {'most of it for':<40} test")
        slowest = sorted(self._costs.items(), key=lambda pair: -pair[1].seconds)
        for test, cost in slowest[: self._count]:
            numbers = f"{cost.seconds:6.1f} {cost.own:6.1f} {cost.programs:8.1f}"
            write(f"{numbers}  {cost.waits_for:<40} {test.rpartition('@')[0] or test}")


_BEFORE = pytest.StashKey[tuple[float, float, float, int, int]]()


def _spent() -> tuple[float, float, float, int, int]:
    own, programs = (
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    return time.monotonic(), own, programs, WarmPopen.forked, PatientPopen.executed
