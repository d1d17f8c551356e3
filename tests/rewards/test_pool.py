"""The pool: every way in which a job can go wrong costs that job only."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bridge_mcore.errors import BridgeError, ConfigError
from bridge_mcore.rewards.pool import Pool

ROOT = Path(__file__).parents[2]
TARGET = "tests.rewards.jobs:run"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    shared = Pool(TARGET, workers=2, cpu_seconds=0.5, wall_seconds=20, memory_gib=0.5)
    yield shared
    shared.close()


def wait_until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_results_come_in_the_order_of_the_jobs(pool: Pool, seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.random() for _ in range(300)]
    jobs = [["echo", value] if rng.random() < 0.9 else ["sleep", 0.01] for value in values]
    for job, outcome in zip(jobs, pool.map(jobs), strict=True):
        assert outcome.kind == "done", outcome.reason
        assert outcome.value == (job[1] if job[0] == "echo" else None)


def test_each_bad_job_gets_its_own_outcome_and_no_other_job_notices(pool: Pool, seed: int) -> None:
    bad = {
        "power": (["power", 9], "timeout", "0.5 s of CPU time"),
        "allocate": (["allocate", 4], "crashed", "memory"),
        "crash": (["crash", None], "crashed", "SIGSEGV"),
        "leave": (["leave", 7], "crashed", "exit code 7"),
        "fail": (["fail", "no such luck"], "raised", "RuntimeError: no such luck"),
        "exit": (["polite_exit", None], "raised", "SystemExit"),
        "object": (["unserialisable", None], "raised", "JSON"),
    }
    jobs = [["echo", i] for i in range(40)]
    places = random.Random(seed).sample(range(40), len(bad))
    for place, (job, _, _) in zip(places, bad.values(), strict=True):
        jobs[place] = job
    outcomes = pool.map(jobs)
    for place, (job, kind, reason) in zip(places, bad.values(), strict=True):
        assert outcomes[place].kind == kind, (job, outcomes[place])
        assert reason in outcomes[place].reason
    for index in set(range(40)) - set(places):
        assert (outcomes[index].kind, outcomes[index].value) == ("done", index)


def test_hidden_want_of_memory_is_told(pool: Pool) -> None:
    outcomes = pool.map([["swallow", 4], ["echo", 1]])
    assert outcomes[0].value is False and outcomes[0].retired
    assert not outcomes[1].retired


def test_output_of_a_job_does_not_disturb_the_frames(pool: Pool) -> None:
    assert [outcome.value for outcome in pool.map([["say", "x" * 200_000], ["echo", 1]])] == ["said", 1]


def test_large_jobs_and_odd_characters_pass(pool: Pool) -> None:
    text = "\ud800é∞\0" * 300_000
    assert pool.map([["echo", text]])[0].value == text
    huge = pool.map([["echo", "x" * (17 << 20)], ["echo", 2]])
    assert huge[0].kind == "raised" and "16 MiB" in huge[0].reason
    assert huge[1].value == 2


def test_a_sleeper_ends_by_the_clock() -> None:
    with contextlib.closing(Pool(TARGET, workers=1, cpu_seconds=5, wall_seconds=0.5)) as pool:
        outcome, after = pool.map([["sleep", 100], ["echo", 1]])
        assert outcome.kind == "timeout" and "longer than 0.5 s" in outcome.reason
        assert after.value == 1


def test_a_stopped_worker_ends_by_the_clock() -> None:
    with contextlib.closing(Pool(TARGET, workers=1, wall_seconds=1)) as pool:
        pool.map([["echo", 0]])
        os.kill(pool.pids[0], signal.SIGSTOP)
        outcome, after = pool.map([["echo", 1], ["echo", 2]])
        assert outcome.kind == "timeout"
        assert after.value == 2


def test_a_worker_killed_in_mid_job(pool: Pool) -> None:
    pool.map([["echo", 0]] * 4)
    before = set(pool.pids)

    def kill_one() -> None:
        time.sleep(0.3)
        os.kill(sorted(before)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcomes = pool.map([["sleep", 0.8], ["sleep", 0.8], ["echo", 1], ["echo", 2]])
    killer.join()
    assert sorted(outcome.kind for outcome in outcomes[:2]) == ["crashed", "done"]
    assert any("SIGKILL" in outcome.reason for outcome in outcomes)
    assert [outcome.value for outcome in outcomes[2:]] == [1, 2]


def test_a_worker_that_died_idle_blames_no_job(pool: Pool) -> None:
    pool.map([["echo", 0]] * 4)
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    assert [outcome.value for outcome in pool.map([["echo", i] for i in range(6)])] == list(range(6))


def test_workers_stay_and_load_neither_torch_nor_the_parent(pool: Pool) -> None:
    first = {outcome.value for outcome in pool.map([["pid", None]] * 4)}
    assert first <= set(pool.pids)
    assert {outcome.value for outcome in pool.map([["pid", None]] * 4)} <= set(pool.pids)
    modules = pool.map([["modules", None]])[0].value
    assert not {"torch", "numpy", "pytest", "multiprocessing"} & set(modules)
    assert pool.map([["hash_seed", None]])[0].value == "0"


def test_threads_take_turns(pool: Pool) -> None:
    results: dict[int, list[int]] = {}

    def call(offset: int) -> None:
        results[offset] = [outcome.value for outcome in pool.map([["echo", offset + i] for i in range(50)])]

    threads = [threading.Thread(target=call, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {1000 * n: [1000 * n + i for i in range(50)] for n in range(4)}


def test_workers_outlive_the_thread_that_started_them() -> None:
    with contextlib.closing(Pool(TARGET, workers=1)) as pool:
        thread = threading.Thread(target=pool.map, args=([["echo", 0]],))
        thread.start()
        thread.join()
        (pid,) = pool.pids
        assert pool.map([["pid", None]])[0].value == pid


def test_an_interrupted_call_leaves_a_pool_that_works(pool: Pool) -> None:
    pool.map([["echo", 0]] * 4)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.map([["sleep", 1], ["sleep", 1], ["echo", "late"]])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [outcome.value for outcome in pool.map([["echo", 1], ["echo", 2]])] == [1, 2]


def test_limits_hold_when_the_parent_ignores_the_signals() -> None:
    """Ignored signals are inherited through exec; the worker must not rely on what it gets."""
    script = (
        "import signal; from bridge_mcore.rewards.pool import Pool\n"
        "for s in (signal.SIGPROF, signal.SIGALRM, signal.SIGIO): signal.signal(s, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF, signal.SIGIO})\n"
        f"pool = Pool({TARGET!r}, workers=1, cpu_seconds=0.3)\n"
        "print(pool.map([['power', 9]])[0].kind)\n"
    )
    done = subprocess.run(
        [sys.executable, "-"], input=script, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["timeout"]


@pytest.mark.parametrize("job", [["power", 9], ["sleep", 100], None], ids=["in C code", "asleep", "idle"])
def test_no_orphans_after_the_parent_is_killed(job: list | None) -> None:
    """Also with a child of the parent alive that holds the parent's ends of the pipes open (a data loader)."""
    forked = job is None
    script = (
        "import os, sys, time; from bridge_mcore.rewards.pool import Pool\n"
        f"pool = Pool({TARGET!r}, workers=1, cpu_seconds=60)\n"
        "pool.map([['echo', 1]])\n"
        f"if {forked} and os.fork() == 0: time.sleep(20); os._exit(0)\n"
        "print(pool.pids[0], flush=True)\n" + (f"pool.map([{job!r}])\n" if job else "time.sleep(100)\n")
    )
    parent = subprocess.Popen([sys.executable, "-"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    parent.stdin.write(script)
    parent.stdin.close()
    worker = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)
    assert worker.is_running()
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 12)
    parent.stdout.close()


def test_a_forked_copy_of_the_pool_has_workers_of_its_own(pool: Pool) -> None:
    pool.map([["echo", 0]])
    pids = pool.pids
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        value = pool.map([["pid", None]])[0].value
        os.write(write, b"own" if value not in pids else b"the parent's")
        pool.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"own"
    os.close(read)
    os.close(write)
    assert pool.pids == pids
    assert pool.map([["pid", None]])[0].value in pids


def test_interrupts_of_the_terminal_are_not_for_the_workers(pool: Pool) -> None:
    pool.map([["echo", 0]])
    for pid in pool.pids:
        assert os.getpgid(pid) != os.getpgid(0)
        os.kill(pid, signal.SIGINT)
    pids = pool.pids
    assert pool.map([["echo", 1]])[0].value == 1
    assert pool.pids == pids


def test_close_ends_the_workers() -> None:
    pool = Pool(TARGET, workers=1)
    pool.map([["echo", 0]])
    (pid,) = pool.pids
    pool.close()
    pool.close()
    assert not psutil.pid_exists(pid)
    with pytest.raises(BridgeError, match="closed"):
        pool.map([["echo", 0]])


def test_workers_that_cannot_start_are_an_error_that_says_why() -> None:
    with contextlib.closing(Pool("tests.rewards.no_such_module:run", workers=1)) as pool:
        with pytest.raises(BridgeError, match=r"No module named 'tests\.rewards\.no_such_module'"):
            pool.map([["echo", 0]])


def test_nothing_starts_before_it_is_needed() -> None:
    with contextlib.closing(Pool(TARGET)) as pool:
        assert pool.map([]) == []
        assert pool.pids == []


@pytest.mark.parametrize("limit", ["workers", "cpu_seconds", "wall_seconds", "memory_gib"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_must_be_positive(limit: str, value: float) -> None:
    with pytest.raises(ConfigError, match=limit):
        Pool(TARGET, **{limit: value})
