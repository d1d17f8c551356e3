"""Nothing that fails in a step costs the checkpoint of the step before, which is still being written then."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from bridge_mcore.checkpoint.manifest import list_checkpoints, read_manifest, verify_files
from bridge_mcore.errors import TrainingError
from tests.checkpoint.test_run_state import LAYOUT, make_policy, same, state_of
from tests.models import save_tiny
from tests.parallel.processes import run_ranks


@pytest.mark.parametrize("failure", [TrainingError, ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_fails_keeps_what_is_being_written(world, tmp_path, monkeypatch, failure):
    from bridge_mcore.checkpoint import run_state

    save_tiny("qwen2", tmp_path / "base", vocab=101)
    policy = make_policy(world, tmp_path / "base")
    failed, write = threading.Event(), run_state.write_pieces

    def slow(*arguments):
        assert failed.wait(60)
        time.sleep(0.2)
        return write(*arguments)

    monkeypatch.setattr(run_state, "write_pieces", slow)
    with pytest.raises(failure, match="the step failed"):
        with run_state.CheckpointWriter(tmp_path / "checkpoints", 2, asynchronous=True) as writer:
            writer.save(policy, 4, {}, LAYOUT)
            assert not list_checkpoints(tmp_path / "checkpoints")
            failed.set()
            raise failure("the step failed")
    (path,) = list_checkpoints(tmp_path / "checkpoints")
    assert path.name == "step_00000004"
    verify_files(path, read_manifest(path))


def test_ctrl_c_while_waiting_for_it_leaves_it_whole(world, tmp_path, monkeypatch):
    """Python takes a thread for ended whose join was interrupted: the metadata must wait for the files all the same."""
    from bridge_mcore.checkpoint import run_state

    save_tiny("qwen2", tmp_path / "base", vocab=101)
    policy, write = make_policy(world, tmp_path / "base"), run_state.write_pieces
    interrupted = threading.Event()

    def slow(*arguments):
        assert interrupted.wait(60)
        return write(*arguments)

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.7)  # whoever does not wait for the files goes on meanwhile
        interrupted.set()

    monkeypatch.setattr(run_state, "write_pieces", slow)
    # A shell's background job, tests among them, is started with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            with run_state.CheckpointWriter(tmp_path / "checkpoints", 2, asynchronous=True) as writer:
                writer.save(policy, 4, {}, LAYOUT)
                threading.Timer(0.3, interrupt).start()
                writer.finish()
                raise AssertionError("it was not interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    before = state_of(policy)
    (path,) = list_checkpoints(tmp_path / "checkpoints")
    run_state.load_state(path, policy, LAYOUT)
    assert same(before, state_of(policy))


def test_a_write_that_fails_too_does_not_hide_what_failed_first(world, tmp_path, monkeypatch, capsys):
    from bridge_mcore.checkpoint import run_state

    save_tiny("qwen2", tmp_path / "base", vocab=101)
    policy = make_policy(world, tmp_path / "base")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_state, "write_pieces", full)
    with pytest.raises(TrainingError, match="the step failed"):
        with run_state.CheckpointWriter(tmp_path / "checkpoints", 2, asynchronous=True) as writer:
            writer.save(policy, 4, {}, LAYOUT)
            raise TrainingError("the step failed")
    assert "step_00000004 could not be finished: the disk is full" in capsys.readouterr().err
    assert not any((tmp_path / "checkpoints").iterdir())


def test_ranks_that_fail_alike_finish_it_together(tmp_path):
    save_tiny("qwen2", tmp_path / "model")
    run_ranks(2, "tests.checkpoint.rescue_job", str(tmp_path / "model"), str(tmp_path / "out"), "all", timeout=120)


def test_a_rank_that_fails_alone_does_not_wait_for_ever(tmp_path):
    save_tiny("qwen2", tmp_path / "model")
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"step_00000001 could not be finished: other ranks are gone"):
        run_ranks(2, "tests.checkpoint.rescue_job", str(tmp_path / "model"), str(tmp_path / "out"), "one", timeout=200)
    assert time.monotonic() - began < 180
    assert not list_checkpoints(tmp_path / "out")
