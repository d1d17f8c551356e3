"""Shared fixtures: one Megatron world of one process for the whole session, and fresh seeds that are printed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


#: Tests that start ranks or servers keep all cores busy: one after another, while a second process does the rest.
_BUSY = (
    "parallel/", "rollout/remote/", "rollout/sync/", "selftest/", "training/test_engines.py",
    "checkpoint/test_experts.py", "checkpoint/test_resharding.py", "checkpoint/test_rescue.py",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `-n 2`: all busy tests go to one process, the first that asks; of the others each file goes as a whole."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0].partition("tests/")[2]
            return "busy" if file.startswith(_BUSY) else file

    config.option.loadscopereorder = False  # in the order of collection: busy ones are among the first
    return Scheduling(config, log)


class Names:
    """Says where a run of `pytest -q` is: each file as its first test starts, each failure and slow test at once."""

    SLOW = 30.0  # seconds

    def __init__(self, writer: Any) -> None:
        self._writer = writer  # pytest's own, which knows how far the line of dots is
        self._files: set[str] = set()

    def _say(self, text: str, **look: bool) -> None:
        if self._writer.width_of_current_line:
            self._writer.line()
        self._writer.line(text, **look)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        file = nodeid.partition("::")[0]
        if file not in self._files:
            self._files.add(file)
            self._say(file)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            when = "" if report.when == "call" else f" ({report.when})"
            self._say(f"FAILED {report.nodeid}{when}", red=True)
        elif report.duration > self.SLOW:
            self._say(f"{report.duration:.0f} s {report.nodeid}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """For processes that write to the terminal, where pytest itself names nothing."""
    if config.get_verbosity() < 0 and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Names(config.get_terminal_writer()))


@pytest.fixture
def seed() -> int:
    """A fresh seed; printed, so that a failure can be repeated with BRIDGE_TEST_SEED."""
    value = int(os.environ.get("BRIDGE_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"BRIDGE_TEST_SEED={value}")
    return value


@pytest.fixture(scope="session")
def world() -> Iterator[object]:
    """(platform, layout) of a one-process CPU run."""
    from bridge_mcore.config.schema import Parallel
    from bridge_mcore.platform.device import setup_device
    from bridge_mcore.platform.distributed import process_groups

    platform = setup_device("cpu")
    with process_groups(platform, Parallel(), seed=0) as layout:
        yield platform, layout
