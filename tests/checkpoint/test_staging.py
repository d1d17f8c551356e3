"""Conversions that are killed, watched or written by two at once."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import transformers

from bridge_mcore.checkpoint.staging import Output, write_directory
from bridge_mcore.errors import CheckpointError
from bridge_mcore.platform.locks import LockHeld


def save_wide(directory: Path, seed: int, hidden: int) -> None:
    """A model of some MiB with random weights in bf16, norms too."""
    config = transformers.LlamaConfig(
        vocab_size=3000, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.bfloat16().save_pretrained(directory, max_shard_size="16MB")


def run_job(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.convert_job", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


def test_a_killed_conversion_leaves_the_old_or_the_new_and_goes_on(tmp_path, seed):
    """SIGKILL at ten random touches of a file: what stands there is whole, and a second run finishes, some going on."""
    for number in (0, 1):
        save_wide(tmp_path / f"hf{number}", seed + number, 320)
    (tmp_path / "work").mkdir()
    outcomes = run_job("kill", str(tmp_path / "hf0"), str(tmp_path / "hf1"), str(tmp_path / "work"), str(seed))
    print(outcomes)
    assert "'old'" in outcomes


def test_memory_does_not_grow_with_the_model(tmp_path, seed):
    """260 MiB there and back add less than 180: two threads map, hold and write a few blocks of 16 MiB each."""
    save_wide(tmp_path / "small", seed, 64)
    save_wide(tmp_path / "hf", seed, 1536)
    size = sum(p.stat().st_size for p in (tmp_path / "hf").glob("*.safetensors")) / 2**20
    assert size > 250
    assert float(run_job("memory", *(str(tmp_path / name) for name in ("small", "hf", ".")))) < 180


def outputs(names: list[str], ran: list[str], fail: str | None = None) -> list[Output]:
    def one(name: str) -> Output:
        def write(path: Path, tick) -> str:
            ran.append(name)
            if name == fail:
                raise KeyboardInterrupt
            path.write_bytes(b"x" * 10)
            tick(10)
            return name.upper()

        return Output(name, 10, write)

    return [one(name) for name in names]


def test_an_interrupted_job_goes_on_only_as_the_same_job(tmp_path):
    ran: list[str] = []
    finished: list[dict] = []
    options = {"workers": 1}

    def finish(directory: Path, results: dict) -> None:
        finished.append(results)

    names = ["a", "b", "c"]
    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "t", {"job": 1}, outputs(names, ran, "b"), finish, **options)
    assert ran == ["a", "b"] and not (tmp_path / "t").exists()
    ran.clear()
    write_directory(tmp_path / "t", {"job": 1}, outputs(names, ran), finish, **options)
    assert ran == ["b", "c"] and finished == [{"a": "A", "b": "B", "c": "C"}]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "c", "t"]
    ran.clear()
    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "u", {"job": 1}, outputs(names, ran, "b"), finish, **options)
    write_directory(tmp_path / "u", {"job": 2}, outputs(names, ran), finish, **options)
    assert ran == ["a", "b", "a", "b", "c"]


def test_nobody_comes_between_a_writer_and_its_last_rename(tmp_path, monkeypatch):
    """While the first writer gives its directory the name, a second one is refused, and undoes nothing."""
    from bridge_mcore.checkpoint import atomic

    sync, refused = atomic.sync_tree, []

    def slow(directory: Path) -> None:
        sync(directory)
        monkeypatch.setattr(atomic, "sync_tree", sync)
        for _ in range(2):
            with pytest.raises(LockHeld, match=r"is being written by process \d+ on "):
                write_directory(tmp_path / "t", {}, outputs(["a"], []), lambda *_: None, workers=1)
            refused.append(True)

    write_directory(tmp_path / "t", {"first": 1}, outputs(["a"], []), lambda *_: None, workers=1)
    monkeypatch.setattr(atomic, "sync_tree", slow)
    write_directory(tmp_path / "t", {}, outputs(["a", "b"], []), lambda *_: None, workers=1, replace=lambda _: True)
    assert len(refused) == 2
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "t"]


def test_a_disk_that_is_too_small_costs_no_finished_file(tmp_path, monkeypatch):
    from collections import namedtuple

    from bridge_mcore.checkpoint import staging

    ran: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "t", {}, outputs(["a", "b"], ran, "b"), lambda *_: None, workers=1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage(9, 9, 0))
    with pytest.raises(CheckpointError, match="its disk has"):
        write_directory(tmp_path / "t", {}, outputs(["a", "b"], ran), lambda *_: None, workers=1)
    monkeypatch.undo()
    write_directory(tmp_path / "t", {}, outputs(["a", "b"], ran), lambda *_: None, workers=1)
    assert ran == ["a", "b", "b"]


def test_two_writers_of_one_directory_do_not_mix(tmp_path):
    """The second is refused while the first writes, and harms nothing."""
    started, go = threading.Event(), threading.Event()

    def slow(path: Path, tick) -> None:
        started.set()
        go.wait(20)
        path.write_bytes(b"first")

    first = threading.Thread(
        target=write_directory,
        args=(tmp_path / "t", {}, [Output("a", 5, slow)], lambda *_: None),
        kwargs={"workers": 1},
    )
    first.start()
    assert started.wait(20)
    with pytest.raises(LockHeld, match=r"is being written by process \d+ on "):
        write_directory(tmp_path / "t", {}, [Output("a", 5, slow)], lambda *_: None, workers=1)
    go.set()
    first.join()
    assert (tmp_path / "t" / "a").read_bytes() == b"first"
    with open(tmp_path / "t" / "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing holds on to it


def test_two_whole_directories_at_one_place_do_not_mix(world, tmp_path):
    """What exports, replays and prepared data are written with: the second is refused, the first is whole."""
    from bridge_mcore.checkpoint.atomic import atomic_directory

    with atomic_directory(tmp_path / "t") as first:
        (first / "a").write_text("first")
        with pytest.raises(LockHeld, match=r"t is being written by process \d+ on "):
            with atomic_directory(tmp_path / "t") as second:
                (second / "b").write_text("second")
        assert (first / "a").exists()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "t"]
