"""The machines and their collectives: the same versions everywhere, right numbers, and how fast."""

from __future__ import annotations

import platform as system
import socket
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from bridge_mcore.errors import BridgeError
from bridge_mcore.platform.device import Platform
from bridge_mcore.selftest.results import Row, ranks_text

_ELEMENTS = 1024  # per rank, of the checks of values
_BANDWIDTH_BYTES = 32 * 2**20
_REPEATS = 3


def check_environment(platform: Platform, row: Row) -> None:
    """What the ranks run on; they must agree about it. Collective."""
    mine = {"runs on": platform.describe(), "Python": system.python_version(), "host": socket.gethostname()}
    everyone: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    for key in ("runs on", "Python"):
        other = [rank for rank, entry in enumerate(everyone) if entry[key] != mine[key]]
        if other:
            raise BridgeError(f"ranks differ: {key} is '{mine[key]}' here, '{everyone[other[0]][key]}' on {other[0]}")
    hosts: dict[str, list[int]] = {}
    for rank, entry in enumerate(everyone):
        hosts.setdefault(entry["host"], []).append(rank)
    places = f"{len(hosts)} machines ({', '.join(f'{h}: ranks {ranks_text(r)}' for h, r in [*hosts.items()][:4])})"
    row.detail = (
        f"{len(everyone)} process{'es' * (len(everyone) > 1)} on {'one machine' if len(hosts) == 1 else places}: "
        f"{mine['runs on']}, Python {mine['Python']}"
    )


def check_collective(platform: Platform, row: Row) -> None:
    """One collective of the backend, by the row's name. Raises BridgeError for a wrong number."""
    got, want = _CHECKS[row.name](dist.get_rank(), dist.get_world_size(), platform.device)
    if not torch.equal(got, want):
        wrong = int((got != want).sum())
        raise BridgeError(f"{wrong} of {want.numel()} numbers are wrong; check the network and the driver's versions")
    row.detail = f"right numbers ({platform.backend})"
    if row.name == "all_reduce":
        row.detail += f"; {_BANDWIDTH_BYTES >> 20} MiB: {_bandwidth(platform):.2f} GB/s on the bus"


def _bandwidth(platform: Platform) -> float:
    """Bus bandwidth of one all_reduce, GB/s: 2 (n - 1) / n of its bytes pass each rank's link each way."""
    world = dist.get_world_size()
    tensor = torch.ones(_BANDWIDTH_BYTES // 4, device=platform.device)
    best = float("inf")
    for _ in range(1 + _REPEATS):  # the first one sets up connections
        dist.barrier()
        platform.synchronize()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        platform.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * (world - 1) / world * _BANDWIDTH_BYTES / best / 1e9


def _ramp(rank: int, count: int, device: torch.device) -> Tensor:
    """Whole numbers below 2^20 that tell ranks and places apart: sums of them are exact in fp32."""
    return (torch.arange(count, device=device) % _ELEMENTS + _ELEMENTS * (rank % 64)).float()


def _all_reduce(rank: int, world: int, device: torch.device) -> tuple[Tensor, Tensor]:
    got = _ramp(rank % 8, _ELEMENTS, device)
    dist.all_reduce(got)
    return got, torch.stack([_ramp(r % 8, _ELEMENTS, device) for r in range(world)]).sum(0)


def _reduce_scatter(rank: int, world: int, device: torch.device) -> tuple[Tensor, Tensor]:
    got = torch.empty(_ELEMENTS, device=device)
    dist.reduce_scatter_tensor(got, torch.cat([_ramp((rank + r) % 8, _ELEMENTS, device) for r in range(world)]))
    return got, torch.stack([_ramp((rank + r) % 8, _ELEMENTS, device) for r in range(world)]).sum(0)


def _all_gather(rank: int, world: int, device: torch.device) -> tuple[Tensor, Tensor]:
    got = torch.empty(_ELEMENTS * world, device=device)
    dist.all_gather_into_tensor(got, _ramp(rank, _ELEMENTS, device))
    return got, torch.cat([_ramp(r, _ELEMENTS, device) for r in range(world)])


def _broadcast(rank: int, world: int, device: torch.device) -> tuple[Tensor, Tensor]:
    got = _ramp(rank, _ELEMENTS, device)
    dist.broadcast(got, src=world - 1)
    return got, _ramp(world - 1, _ELEMENTS, device)


def _send_recv(rank: int, world: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Round the ring, as the stages of a pipeline do."""
    got, before, after = torch.empty(_ELEMENTS, device=device), (rank - 1) % world, (rank + 1) % world
    sends = dist.P2POp(dist.isend, _ramp(rank, _ELEMENTS, device), after)
    for work in dist.batch_isend_irecv([sends, dist.P2POp(dist.irecv, got, before)]):
        work.wait()
    return got, _ramp(before, _ELEMENTS, device)


def _all_to_all(rank: int, world: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Part r goes to rank r, as tokens go to experts."""
    parts = torch.cat([_ramp((rank + r) % 64, _ELEMENTS, device) for r in range(world)])
    got = torch.empty_like(parts)
    dist.all_to_all_single(got, parts)
    return got, parts  # what r sends here is marked r + rank, as what goes to r is


_CHECKS: dict[str, Callable[[int, int, torch.device], tuple[Tensor, Tensor]]] = {
    "all_reduce": _all_reduce,
    "reduce_scatter": _reduce_scatter,
    "all_gather": _all_gather,
    "broadcast": _broadcast,
    "send_recv": _send_recv,
    "all_to_all": _all_to_all,
}
