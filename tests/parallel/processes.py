"""Start real ranks of a Python module on this machine, as torchrun would."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from bridge_mcore.platform.ranks import free_port


def run_ranks(count: int, module: str, *arguments: str, timeout: float = 600.0) -> str:
    """Run ``python -m module arguments`` as ranks 0 … count-1; what rank 0 printed. AssertionError if one fails."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
    }  # fmt: skip
    # a pipe that nobody reads would fill up
    logs = [tempfile.TemporaryFile("w+") for _ in range(count)]  # noqa: SIM115
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=logs[r],
            stderr=subprocess.STDOUT,
        )
        for r in range(count)
    ]
    deadline = time.monotonic() + timeout
    try:
        while any(rank.poll() is None for rank in ranks):
            if time.monotonic() > deadline or any(rank.poll() for rank in ranks):
                time.sleep(2)  # let the others say what they saw
                break
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
    codes = [rank.wait() for rank in ranks]
    texts = []
    for log in logs:
        log.seek(0)
        texts.append(log.read())
        log.close()
    assert not any(codes), "\n".join(f"--- rank {r}: {codes[r]}\n{text[-4000:]}" for r, text in enumerate(texts))
    return texts[0]
