"""Shared fixtures: one Megatron world of one process for the whole session, and fresh seeds that are printed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
