"""Checkpoints under bad luck: kills at every moment, full disks, flipped bits, hostile files, another run's state."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import time
import zlib
from pathlib import Path

import pytest
import torch

from tests.models import save_tiny

LAYOUT = {"tensor": 1, "method": "bridge", "optimizer": "adamw"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    save_tiny("qwen2", directory, vocab=101)
    return directory


def make_policy(world, source, *, stepped: bool = True, moments: bool = True, reference: bool = False):
    from bridge_mcore.config.schema import Config
    from bridge_mcore.training.policy import build_policy
    from tests.checkpoint.resharding_job import fill

    config = Config()
    config.auxiliary.optimizer = "same" if moments else "sgd"
    policy = build_policy(config, world[0], source, adapter=True, auxiliary=True, reference=reference)
    if stepped:
        fill(policy)
        if not moments:
            policy.slots["theta_hat"].states = [{} for _ in policy.slots["theta_hat"].values]
    return policy


def state_of(policy) -> dict[str, torch.Tensor]:
    from tests.checkpoint.resharding_job import tensors

    return {k.split(" ", 2)[-1] if k.startswith("live") else k: v.clone() for k, v in tensors(policy).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_megatron_reads_the_tensors(world, source, tmp_path):
    """The files are Megatron's torch_dist format: its own loader gives the whole tensors."""
    from megatron.core import dist_checkpointing

    from bridge_mcore.checkpoint.run_state import save_state

    policy = make_policy(world, source)
    path = save_state(tmp_path, policy, 1, {}, LAYOUT)
    plain = dist_checkpointing.load_plain_tensors(str(path))
    theta = policy.masters()
    qkv, fc1 = "decoder.layers.1.self_attention.linear_qkv.weight", "decoder.layers.0.mlp.linear_fc1.weight"
    assert torch.equal(plain[f"theta/{qkv}"], theta[qkv])
    assert torch.equal(torch.cat([plain[f"theta/{fc1}.{p}"] for p in ("gate", "up")]), theta[fc1])
    assert torch.equal(plain[f"optimizer/exp_avg/{qkv}"], theta[qkv] * 0.37)


def test_any_damage_to_any_file_is_named(world, source, tmp_path, seed):
    """Flipped bits, lost ends, lost files: a CheckpointError that names the file, and never half a load."""
    from bridge_mcore.checkpoint.run_state import load_state, save_state
    from bridge_mcore.errors import CheckpointError

    rng = random.Random(seed)
    policy = make_policy(world, source)
    path = save_state(tmp_path, policy, 1, {"a": 1}, LAYOUT)
    before = state_of(policy)
    files = sorted(path.iterdir())
    assert {f.name for f in files} >= {"checkpoint.json", "state.json", ".metadata", "metadata.json", "__0_0.distcp"}
    for file in files:
        good = file.read_bytes()
        damaged = [good[: rng.randrange(len(good))], good + b"\0", None]
        for _ in range(12):
            at = rng.randrange(len(good))
            damaged.append(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
        for content in damaged:
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
            with pytest.raises(CheckpointError, match=file.name.replace(".", r"\.")):
                load_state(path, policy, LAYOUT)
            file.write_bytes(good)
    assert same(before, state_of(policy))
    assert load_state(path, policy, LAYOUT) == (1, {"a": 1})


def rewrite(path: Path, **contents: bytes) -> None:
    """Replace files and give the manifest their checksums, as one who means harm would."""
    from bridge_mcore.checkpoint.manifest import FileEntry, write_manifest

    manifest = json.loads((path / "checkpoint.json").read_text())
    for name, content in contents.items():
        (path / name).write_bytes(content)
        manifest["files"][name] = FileEntry(bytes=len(content), crc32=zlib.crc32(content))
    write_manifest(path, manifest["step"], manifest["layout"], manifest["files"])


class Harm:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_nothing_in_a_checkpoint_is_run(world, source, tmp_path):
    from bridge_mcore.checkpoint.run_state import load_state, save_state
    from bridge_mcore.errors import CheckpointError

    policy = make_policy(world, source)
    path = save_state(tmp_path, policy, 1, {}, LAYOUT)
    metadata = pickle.loads((path / ".metadata").read_bytes())
    good = (path / "__0_0.distcp").read_bytes()
    rewrite(path, **{".metadata": pickle.dumps(Harm(tmp_path / "harm"))})
    with pytest.raises(CheckpointError, match=r"posix\.mkdir|os\.mkdir"):
        load_state(path, policy, LAYOUT)
    for info in metadata.storage_data.values():
        info.relative_path = "../elsewhere"
    rewrite(path, **{".metadata": pickle.dumps(metadata)})
    with pytest.raises(CheckpointError, match="not of the checkpoint"):
        load_state(path, policy, LAYOUT)
    for info in metadata.storage_data.values():
        info.relative_path, info.offset, info.length = "__0_0.distcp", 0, len(pickle.dumps(Harm(tmp_path / "harm")))
    harmful = pickle.dumps(Harm(tmp_path / "harm"))
    rewrite(path, **{".metadata": pickle.dumps(metadata), "__0_0.distcp": harmful + good})
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(path, policy, LAYOUT)
    for name, content in {"state.json": b"[]", ".metadata": b"\x80", "common.pt": harmful}.items():
        rewrite(path, **{name: content})
        with pytest.raises(CheckpointError):
            load_state(path, policy, LAYOUT)
    assert not (tmp_path / "harm").exists()


def test_state_of_another_kind_of_run_is_refused(world, source, tmp_path):
    """Moments that would be dropped or made up, other slots, another method, optimizer or model: errors that say so."""
    from bridge_mcore.checkpoint.run_state import load_state, save_state
    from bridge_mcore.errors import CheckpointError

    policy = make_policy(world, source)
    path = save_state(tmp_path / "a", policy, 1, {}, LAYOUT)
    plain = make_policy(world, source, moments=False)
    without = save_state(tmp_path / "b", plain, 1, {}, LAYOUT)
    with pytest.raises(CheckpointError, match="the checkpoint has optimizer moments for the slot 'theta_hat'"):
        load_state(path, plain, LAYOUT)
    with pytest.raises(CheckpointError, match="this run has optimizer moments for the slot 'theta_hat'"):
        load_state(without, policy, LAYOUT)
    assert load_state(without, plain, LAYOUT)[0] == 1
    with pytest.raises(CheckpointError, match="only this run has a slot 'reference'"):
        load_state(path, make_policy(world, source, reference=True), LAYOUT)
    for key, value in {"method": "rl_zero", "optimizer": "sgd"}.items():
        with pytest.raises(CheckpointError, match=f"{key} '{LAYOUT[key]}', this one has '{value}'"):
            load_state(path, policy, {**LAYOUT, key: value})
    other = tmp_path / "other"
    save_tiny("qwen2", other, vocab=113)
    with pytest.raises(CheckpointError, match=r"embedding\.word_embeddings\.weight' is \(101, 64\), .* \(113, 64\)"):
        load_state(path, make_policy(world, other), LAYOUT)
    shutil.rmtree(other)
    save_tiny("qwen2", other, vocab=101, layers=4)
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.[23].* is missing"):
        load_state(path, make_policy(world, other), LAYOUT)
    larger = save_state(tmp_path / "c", make_policy(world, other), 1, {}, LAYOUT)
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.[23].* has no place"):
        load_state(larger, policy, LAYOUT)


def test_a_run_that_never_stepped_gets_no_moments(world, source, tmp_path):
    from bridge_mcore.checkpoint.run_state import load_state, save_state

    fresh = make_policy(world, source, stepped=False)
    path = save_state(tmp_path, fresh, 1, {}, LAYOUT)
    policy = make_policy(world, source)
    load_state(path, policy, LAYOUT)
    assert same(state_of(policy), state_of(fresh))
    assert not any("exp_avg" in k for k in state_of(policy))


class Killed(BaseException):
    """What follows a SIGKILL: no more of our code runs."""


def test_killed_at_any_moment_a_run_has_the_old_or_the_new_checkpoint(world, source, tmp_path, monkeypatch):
    """Die at the n-th change of the file system, for every n: what has a name is whole, and the next save cleans up."""
    from bridge_mcore.checkpoint.atomic import recover
    from bridge_mcore.checkpoint.run_state import CheckpointWriter, list_checkpoints, load_state, read_manifest

    policy = make_policy(world, source, stepped=False)
    real = {(shutil, "rmtree"): shutil.rmtree, (Path, "rename"): Path.rename, (Path, "mkdir"): Path.mkdir,
            (os, "fsync"): os.fsync}  # fmt: skip
    left = 0

    def dying(owner, name):
        def operation(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                target = Path(args[0]) if name == "rmtree" else None
                if target and target.is_dir():  # killed in the middle of a removal
                    next(iter(target.iterdir())).unlink()
                raise Killed
            return real[owner, name](*args, **kwargs)

        return operation

    directory, before = tmp_path / "checkpoints", tmp_path / "before"
    for step in (1, 2, 3):
        CheckpointWriter(before).save(policy, step, {"save": "old"}, LAYOUT)
    deaths = seen_old = seen_new = 0
    for again in (False, True):  # a new step, and a step that is there already
        for moment in range(100):
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(before, directory)
            if not again:
                shutil.rmtree(directory / "step_00000003")
            (directory / ".step_00000001.incomplete").mkdir()
            left = moment
            with monkeypatch.context() as m:
                for owner, name in real:
                    m.setattr(owner, name, dying(owner, name))
                try:
                    CheckpointWriter(directory, keep=2).save(policy, 3, {"save": "new"}, LAYOUT)
                    finished = True
                except Killed:
                    finished = False
                    deaths += 1
            recover(directory, "step_*")
            found = list_checkpoints(directory)
            assert {p.name for p in directory.iterdir()} == {p.name for p in found}, "something was left lying about"
            for path in found:
                read_manifest(path)
            step, extra = load_state(found[0], policy, LAYOUT)
            assert (step, extra["save"]) in ([(3, "new"), (3, "old")] if again else [(2, "old"), (3, "new")])
            assert len(found) >= 2
            seen_new += extra["save"] == "new"
            seen_old += extra["save"] == "old"
            if finished:
                break
        assert finished
    assert deaths > 15 and seen_old > 4 and seen_new > 4


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_leaves_the_last_good_checkpoint(world, source, tmp_path, monkeypatch, asynchronous):
    """A real ENOSPC, from the kernel, while the second checkpoint is written."""
    from bridge_mcore.checkpoint import atomic
    from bridge_mcore.checkpoint.run_state import CheckpointWriter, load_state
    from bridge_mcore.errors import TrainingError

    policy = make_policy(world, source)
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=1, asynchronous=asynchronous)
    writer.save(policy, 1, {"a": 1}, LAYOUT)
    writer.finish()
    for name in ("__0_0.distcp", ".metadata", "state.json", "checkpoint.json"):
        real = atomic.begin

        def full(target, name=name, real=real):
            temporary = real(target)
            (temporary / name).symlink_to("/dev/full")
            return temporary

        with monkeypatch.context() as m:
            m.setattr(atomic, "begin", full)
            with pytest.raises(TrainingError, match="disk is full"):
                writer.save(policy, 2, {"a": 2}, LAYOUT)
                writer.finish()
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"], name
    assert load_state(tmp_path / "checkpoints" / "step_00000001", policy, LAYOUT) == (1, {"a": 1})
    writer.save(policy, 2, {"a": 2}, LAYOUT)  # and it goes on when there is room
    writer.finish()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]


def test_a_background_save_is_of_the_moment_it_was_asked_for(world, source, tmp_path, monkeypatch):
    """Training changes everything while the thread writes; the old checkpoint stays until the new one is done."""
    from bridge_mcore.checkpoint import run_state
    from tests.checkpoint.resharding_job import scramble

    policy = make_policy(world, source, reference=True)
    want = state_of(policy)
    hold = {"until": False}
    real = run_state.write_pieces

    def slow(*args):
        while not hold["until"]:
            time.sleep(0.001)
        return real(*args)

    monkeypatch.setattr(run_state, "write_pieces", slow)
    writer = run_state.CheckpointWriter(tmp_path, keep=1, asynchronous=True)
    hold["until"] = True
    writer.save(policy, 1, {}, LAYOUT)
    assert writer.finish() == tmp_path / "step_00000001"
    hold["until"] = False
    writer.save(policy, 2, {}, LAYOUT)
    scramble(policy)
    assert writer.poll() is None
    assert run_state.list_checkpoints(tmp_path) == [tmp_path / "step_00000001"]
    hold["until"] = True
    deadline = time.time() + 60
    while (done := writer.poll()) is None and time.time() < deadline:
        time.sleep(0.001)
    assert done == tmp_path / "step_00000002"
    assert writer.poll() is None and writer.finish() is None
    assert run_state.list_checkpoints(tmp_path) == [done]
    run_state.load_state(done, policy, LAYOUT)
    assert same(want, state_of(policy))


def test_a_disk_that_does_not_keep_what_is_written_is_noticed(world, source, tmp_path, monkeypatch):
    """A bit that flips between the write and the disk: the new checkpoint is refused and the old one is kept."""
    from bridge_mcore.checkpoint import sharded
    from bridge_mcore.checkpoint.run_state import CheckpointWriter, load_state
    from bridge_mcore.errors import TrainingError

    policy = make_policy(world, source)
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.save(policy, 1, {}, LAYOUT)
    real = sharded.checksum

    def faulty(path, cold=False):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        return real(path, cold)

    monkeypatch.setattr(sharded, "checksum", faulty)
    with pytest.raises(TrainingError, match=r"__0_0\.distcp does not read back"):
        writer.save(policy, 2, {}, LAYOUT)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    assert load_state(tmp_path / "step_00000001", policy, LAYOUT) == (1, {})


def test_a_directory_that_cannot_be_written_is_a_plain_error(world, source, tmp_path, monkeypatch):
    from bridge_mcore.checkpoint import atomic
    from bridge_mcore.checkpoint.run_state import CheckpointWriter
    from bridge_mcore.errors import TrainingError

    def denied(_target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(atomic, "begin", denied)
    with pytest.raises(TrainingError, match=r"step_00000001 could not be written: .*Permission denied"):
        CheckpointWriter(tmp_path).save(make_policy(world, source), 1, {}, LAYOUT)
