"""Buckets to servers: through memory of this host, or through a process group."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from bridge_mcore.platform.ranks import free_port, gloo_interface, is_loopback
from bridge_mcore.rollout.remote.dialect import Dialect, Entry, Group
from bridge_mcore.rollout.remote.http import Http, ServerLost, ServerRefused
from bridge_mcore.rollout.sync.shared import buffer_path, release_path

#: A bucket takes far less; a worker that is silent for longer has hung.
BUCKET_SECONDS = 600.0
_JOIN_SECONDS = 120.0


@dataclass
class Outcome:
    """What has gone wrong in one update: servers that were lost, and what servers refused."""

    lost: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def note(self, url: str, error: BaseException) -> None:
        """Keep a failure of one server."""
        if isinstance(error, ServerRefused):
            self.refused[url] = str(error)
        elif isinstance(error, ServerLost):
            self.lost[url] = str(error)
        else:
            self.refused[url] = f"{type(error).__name__}: {error}"

    def usable(self, urls: Sequence[str]) -> list[str]:
        """Those that have not failed."""
        return [url for url in urls if url not in self.lost and url not in self.refused]


@dataclass
class _Posted:
    """Requests under way, one for each server."""

    answers: dict[str, Future]
    outcome: Outcome

    def wait(self) -> None:
        for url, answer in self.answers.items():
            try:
                answer.result()
            except Exception as error:  # kept: the other servers go on
                self.outcome.note(url, error)


class SharedMemory:
    """Workers on this host open the bucket where it lies: shared memory on CPU, CUDA IPC on GPUs."""

    def __init__(self, http: Http, dialect: Dialect, urls: Sequence[str], ranks: int, device: torch.device) -> None:
        """ranks: tensor-parallel size of each server."""
        self.http, self.dialect, self.urls, self.ranks, self.device = http, dialect, list(urls), ranks, device
        self.outcome = Outcome()
        self._files: list[str | None] = []

    def make(self, size: int) -> Tensor:
        """A buffer that workers can open, uint8 [size]."""
        buffer = self.dialect.shared_buffer(size, self.device)
        self._files.append(buffer_path(buffer))
        return buffer

    def send(self, bucket: Tensor, entries: Sequence[Entry]) -> _Posted:
        """Have all servers copy a bucket."""
        if bucket.is_cuda:
            torch.cuda.current_stream().synchronize()  # another process reads it, in no stream of ours
        answers = {}
        for url in self.outcome.usable(self.urls):
            payload = self.dialect.shared_payload(bucket, entries, self.ranks)
            answers[url] = self.http.start(self.dialect.load_shared(self.http, url, payload, BUCKET_SECONDS))
        return _Posted(answers, self.outcome)

    def close(self) -> None:
        """End the buffers' files; the memory goes with the buffers."""
        for path in self._files:
            if path is not None:
                release_path(path)
        self._files.clear()


@dataclass
class _Broadcast:
    """A bucket under way through the group."""

    work: Any
    posted: _Posted
    transport: Broadcast
    bucket: Tensor

    def wait(self) -> None:
        deadline = time.monotonic() + BUCKET_SECONDS
        answers = self.posted.answers
        while self.work is not None and not self.work.is_completed():
            broken = [u for u, a in answers.items() if a.done() and a.exception() is not None]
            if broken or time.monotonic() > deadline:
                # A member that will never receive: the others wait for a message that cannot come any more.
                self.transport.abandon(f"{', '.join(broken) or 'a server'} left the broadcast of a bucket")
                break
            time.sleep(0.001)
        else:
            try:
                if self.work is not None:
                    self.work.wait()
                    if self.bucket.is_cuda:
                        torch.cuda.current_stream().synchronize()
            except RuntimeError as error:
                self.transport.abandon(f"the broadcast of a bucket failed: {error}")
        self.posted.wait()


class Broadcast:
    """A process group of this rank (rank 0) and every worker of the servers; buckets are broadcast."""

    def __init__(
        self, http: Http, dialect: Dialect, urls: Sequence[str], ranks: int, device: torch.device, name: str, host: str
    ) -> None:
        """host: address of this host that servers reach. Joins at once; failures are in `outcome`."""
        self.http, self.dialect, self.urls, self.device = http, dialect, list(urls), device
        self.outcome = Outcome()
        self.backend = "gloo" if device.type == "cpu" else "nccl"
        offsets = {url: 1 + i * ranks for i, url in enumerate(self.urls)}
        self.group = Group(name, host, free_port(), 1 + ranks * len(self.urls), self.backend, offsets)
        joins = {url: http.start(dialect.join(http, url, self.group, BUCKET_SECONDS)) for url in self.urls}
        self._group: Any = None
        try:
            self._group = self._join(joins)
        except Exception as error:  # torch raises many kinds; all mean that somebody did not come
            for url, answer in joins.items():
                if answer.done() and (failure := answer.exception()) is not None:
                    self.outcome.note(url, failure)
            if not self.outcome.refused:
                self.abandon(f"the process group did not form: {error}")
            return
        _Posted(joins, self.outcome).wait()

    def _join(self, joins: dict[str, Future]) -> Any:
        """Join while the servers do, but do not wait for one that has failed already."""
        joined: Future[Any] = Future()

        def join() -> None:
            try:
                if self.device.type == "cuda":
                    torch.cuda.set_device(self.device)
                joined.set_result(join_group(self.group, 0, _JOIN_SECONDS, self.device))
            except Exception as error:  # raised where it is waited for
                joined.set_exception(error)

        # A thread, because nothing else ends torch's wait for a member that will never come.
        threading.Thread(target=join, name="join", daemon=True).start()
        while not joined.done():
            for answer in joins.values():
                if answer.done() and (failure := answer.exception()) is not None:
                    raise failure
            time.sleep(0.005)
        return joined.result()

    def make(self, size: int) -> Tensor:
        """A buffer, uint8 [size]."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def send(self, bucket: Tensor, entries: Sequence[Entry]) -> _Broadcast | _Posted:
        """Broadcast a bucket to all servers."""
        if self._group is None:
            return _Posted({}, self.outcome)
        answers = {
            url: self.http.start(self.dialect.receive(self.http, url, self.group, entries, BUCKET_SECONDS))
            for url in self.outcome.usable(self.urls)
        }
        try:
            work = dist.broadcast(bucket, group_src=0, group=self._group, async_op=True)
        except RuntimeError as error:
            self.abandon(f"the broadcast of a bucket failed: {error}")
            work = None
        return _Broadcast(work, _Posted(answers, self.outcome), self, bucket)

    def abandon(self, reason: str) -> None:
        """Give the group up: nobody in it has all the weights."""
        for url in self.outcome.usable(self.urls):
            self.outcome.lost[url] = reason
            self.http.start(self.dialect.leave(self.http, url, self.group, 10.0))  # best effort, nobody waits
        self._end()

    def _end(self) -> None:
        if self._group is not None:
            group, self._group = self._group, None
            leave_group(group)

    def close(self) -> None:
        """Leave the group, on both sides."""
        if self._group is None:
            return
        answers = {
            url: self.http.start(self.dialect.leave(self.http, url, self.group, 60.0))
            for url in self.outcome.usable(self.urls)
        }
        self._end()
        _Posted(answers, self.outcome).wait()


def join_group(group: Group, rank: int, seconds: float, device: torch.device) -> Any:
    """Join a process group beside the run's own, as SGLang's and our vLLM workers do. torch's errors if nobody comes.

    torch.distributed only makes groups of ranks of its world; servers are in no world of ours, so the group is made
    with the helper that `init_process_group` itself uses.
    """
    timeout = timedelta(seconds=seconds)
    # torch would listen on all interfaces; servers come to this address.
    listening = socket.create_server((group.address, group.port), backlog=1024).detach() if rank == 0 else None
    # Not torch's rendezvous: under torchrun that takes rank 0 for a client of the agent's store.
    store = dist.TCPStore(
        group.address, group.port, group.world, is_master=rank == 0, timeout=timeout, wait_for_workers=False,
        master_listen_fd=listening,
    )  # fmt: skip
    name: Any = group.name
    # A device bound to the run's own group would make NCCL split that one instead of forming another.
    world: Any = dist.group.WORLD
    bound, world.bound_device_id = world.bound_device_id, None
    try:
        with gloo_interface(is_loopback(group.address)):
            made, _ = c10d._new_process_group_helper(
                group.world, rank, [], c10d.Backend(group.backend), c10d.PrefixStore(group.name, store),
                group_name=name, timeout=timeout,
            )  # fmt: skip
    finally:
        world.bound_device_id = bound
    c10d._world.pg_group_ranks[made] = {i: i for i in range(group.world)}
    return made


def leave_group(group: Any) -> None:
    """End a group of `join_group`; members that still wait in it fail."""
    abort = getattr(group, "abort", None)
    try:
        if abort is not None and dist.get_backend(group) == "nccl":
            abort()
        dist.destroy_process_group(group)
    except RuntimeError:  # it is broken already
        c10d._world.pg_group_ranks.pop(group, None)
