"""A lock ends with its holder, names it, and is not fooled where a file system has no locks or keeps them to a host."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bridge_mcore.errors import BridgeError
from bridge_mcore.platform import locks
from bridge_mcore.platform.locks import FileLock, Holder, LockHeld

HOLD = """
import sys, time
from pathlib import Path
from bridge_mcore.platform.locks import FileLock
lock = FileLock(Path(sys.argv[1]), "it")
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path/lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def record(path: Path) -> Holder:
    return Holder(**json.loads(path.read_text()))


def no_locks(monkeypatch) -> None:
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_the_second_is_refused_and_told_who_has_it(tmp_path, other):
    with pytest.raises(LockHeld, match=rf"runs/a is being written by process {other.pid} on \S+ since 20\d\d-"):
        FileLock(tmp_path / "lock", "runs/a").acquire()
    assert record(tmp_path / "lock").process == other.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_holders_lock_is_taken_over(tmp_path, other, number):
    os.kill(other.pid, number)
    other.wait()
    assert (tmp_path / "lock").exists()  # it could not remove it
    with FileLock(tmp_path / "lock", "it"):
        assert record(tmp_path / "lock").process == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_it_waits_a_stated_time_and_has_it_when_the_holder_ends(tmp_path, other):
    said: list[str] = []
    lock = FileLock(tmp_path / "lock", "runs/a", said.append)
    began = time.monotonic()
    with pytest.raises(LockHeld, match=r"\(waited 0\.5 s for it to end\)"):
        lock.acquire(0.5)
    assert time.monotonic() - began >= 0.5
    threading.Timer(0.5, other.kill).start()
    lock.acquire(60)
    lock.release()
    assert [line for line in said if "waiting up to" in line] == said and len(said) == 2


def test_children_do_not_hold_it(tmp_path):
    """A server or worker that outlives the holder must not keep the directory locked."""
    lock = FileLock(tmp_path / "lock", "it")
    lock.acquire()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    try:
        lock.release()
        with FileLock(tmp_path / "lock", "it"):
            pass
    finally:
        child.kill()
        child.wait()


def test_without_locks_the_beat_tells_who_lives(tmp_path, monkeypatch):
    no_locks(monkeypatch)
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.02)
    said: list[str] = []
    first = FileLock(tmp_path / "lock", "it", said.append, beat_seconds=0.05)
    first.acquire()
    assert any("without locks" in line for line in said)
    with pytest.raises(LockHeld, match=f"process {os.getpid()}"):
        FileLock(tmp_path / "lock", "it", said.append, beat_seconds=0.05).acquire()
    first._ended.set()  # as if it had died: no beat any more, and its record stays
    assert first._thread is not None
    first._thread.join()
    with FileLock(tmp_path / "lock", "it", said.append, beat_seconds=0.05):
        assert "taking over" in said[-1] or any("taking over" in line for line in said)
    assert not (tmp_path / "lock").exists()


def test_a_holder_on_another_host_is_seen_where_locks_do_not_reach(tmp_path, monkeypatch):
    """flock succeeds, as on a file system that keeps locks to each host; the record's beat goes on all the same."""
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.02)
    path = tmp_path / "lock"
    theirs = Holder("node7", 4242, "2026-11-30 10:00:00", "991", "another kernel", "t", 0, 0.1)
    path.write_text(json.dumps(asdict(theirs)))
    stop = threading.Event()

    def beat() -> None:
        number = 0
        while not stop.wait(0.1):
            number += 1
            path.write_text(json.dumps(asdict(replace(theirs, beat=number))))

    thread = threading.Thread(target=beat)
    thread.start()
    said: list[str] = []
    try:
        with pytest.raises(LockHeld, match=r"process 4242 on node7 \(job 991\) since 2026-11-30"):
            FileLock(path, "it", said.append).acquire()
    finally:
        stop.set()
        thread.join()
    with FileLock(path, "it", said.append):  # its host is gone
        pass
    assert said[-1] == "· nothing has been heard of it for 0.6 s: taking over"


def test_who_was_taken_over_while_it_slept_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.02)
    lost: list[Holder] = []
    lock = FileLock(tmp_path / "lock", "it", beat_seconds=0.05, on_lost=lost.append)
    lock.acquire()
    (tmp_path / "lock").write_text(json.dumps(asdict(Holder("node7", 4242, "now", token="theirs"))))
    deadline = time.monotonic() + 30
    while not lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [holder.process for holder in lost] == [4242]
    lock.release()
    assert record(tmp_path / "lock").process == 4242  # it is theirs: not removed, not written


def test_the_default_for_a_lost_lock_is_the_end_of_the_process(tmp_path):
    code = HOLD.replace('"it")', '"runs/a", beat_seconds=0.05)')
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    (tmp_path / "lock").write_text(json.dumps(asdict(Holder("node7", 4242, "now", token="theirs"))))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "runs/a has been taken over by process 4242 on node7 since now" in said


def test_a_lock_that_somebody_removed_is_put_back(tmp_path):
    lock = FileLock(tmp_path / "lock", "it", beat_seconds=0.05)
    lock.acquire()
    (tmp_path / "lock").unlink()
    deadline = time.monotonic() + 30
    while not (tmp_path / "lock").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(LockHeld):
        FileLock(tmp_path / "lock", "it").acquire()
    lock.release()
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[1]", b'{"host": 1}', b"[" * 4000, b'{"host":"a","process":1e999}']
)
def test_a_record_that_is_none_keeps_nobody_out(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    with FileLock(tmp_path / "lock", "it"):
        assert record(tmp_path / "lock").process == os.getpid()


def test_hostile_records_are_shown_harmlessly(tmp_path, other):
    mine = record(tmp_path / "lock")
    with open(tmp_path / "lock", "r+") as file:
        json.dump(asdict(replace(mine, host="\x1b[31mevil\n" + "x" * 5000)), file)
    with pytest.raises(LockHeld) as caught:
        FileLock(tmp_path / "lock", "it").acquire()
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_symlink_in_the_locks_place_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="cannot be made"):
        FileLock(tmp_path / "lock", "it").acquire()
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_that_was_given_back_beats_again(tmp_path):
    lock = FileLock(tmp_path / "lock", "it", beat_seconds=0.05)
    lock.acquire()
    lock.release()
    lock.acquire()
    first = record(tmp_path / "lock").beat
    deadline = time.monotonic() + 30
    while record(tmp_path / "lock").beat < first + 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert record(tmp_path / "lock").beat >= first + 2
    lock.release()


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "the disk is full: "), (errno.EIO, "cannot be written")])
def test_a_disk_that_does_not_take_it_is_said(tmp_path, monkeypatch, number, said):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(BridgeError, match=said):
        FileLock(tmp_path / "lock", "it").acquire()
    assert not any(tmp_path.iterdir())
