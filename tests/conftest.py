"""Shared fixtures: one Megatron world of one process for the whole session, and fresh seeds that are printed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


#: Tests that start ranks or servers keep all cores busy: one after another, while a second process does the rest.
_BUSY = (
    "parallel/", "rollout/remote/", "rollout/sync/", "selftest/", "training/test_runs.py", "training/test_engines.py",
    "checkpoint/test_convert.py", "checkpoint/test_experts.py", "checkpoint/test_resharding.py",
    "checkpoint/test_staging.py", "test_replay.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups for `-n 2 --dist loadgroup`: the busy tests are one, and each other file is one."""
    root = Path(__file__).parent
    for item in items:
        name = item.path.relative_to(root).as_posix()
        item.add_marker(pytest.mark.xdist_group("busy" if name.startswith(_BUSY) else name))


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
