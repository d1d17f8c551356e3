"""Handles on memory of this host, in the form that SGLang's workers open: shared memory on CPU, CUDA IPC on GPUs."""

from __future__ import annotations

import base64
import io
import itertools
import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.multiprocessing
from torch import Tensor
from torch.multiprocessing import reductions

from bridge_mcore.errors import TrainingError

if TYPE_CHECKING:
    from bridge_mcore.rollout.remote.dialect import Entry

_DEVICE = 6  # where torch's rebuild_cuda_tensor takes the device


@contextmanager
def _by_name() -> Iterator[None]:
    """Share CPU memory by file name: descriptors cannot be sent to a process that is no child."""
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        yield
    finally:
        torch.multiprocessing.set_sharing_strategy(before)


def shared_buffer(size: int, device: torch.device) -> Tensor:
    """An uninitialised buffer, uint8 [size], that workers on this host can open."""
    if device.type != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)
    _check_room(size)
    with _by_name():
        # Not share_memory_(), which copies the memory that it shares.
        return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))


def _reduce(tensor: Tensor) -> Any:
    rebuild, arguments = reductions.reduce_tensor(tensor)
    if tensor.is_cuda:
        # Two processes may number the GPUs differently; SGLang looks a device up by its UUID.
        uuid = str(torch.cuda.get_device_properties(tensor.device).uuid)
        arguments = (*arguments[:_DEVICE], uuid, *arguments[_DEVICE + 1 :])
    return rebuild, arguments


class _HandlePickler(ForkingPickler):
    """Pickles handles of tensors instead of their content."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.dispatch_table = {**self.dispatch_table, Tensor: _reduce}


_FILES = Path("/dev/shm")
_counter = itertools.count()


def _check_room(size: int) -> None:
    """Raises TrainingError if the shared memory of this host (a container has 64 MiB by default) has no room."""
    free = shutil.disk_usage(_FILES).free if _FILES.is_dir() else size
    if free < size:
        raise TrainingError(
            f"/dev/shm has {free / 2**20:.0f} MiB left, a bucket of weights takes {size / 2**20:.0f}: lower "
            "sync.bucket_mib, give the container more (docker run --shm-size), or use sync.method=disk"
        )


def file_buffer(size: int, device: torch.device) -> Tensor:
    """As `shared_buffer`, for workers that map a file: on CPU the buffer is `buffer_path` and nothing else."""
    if device.type != "cpu":
        return shared_buffer(size, device)
    _check_room(size)
    for old in _FILES.glob("bridge-mcore-*"):  # of trainers that were killed
        pid = old.name.split("-")[2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            old.unlink(missing_ok=True)
    path = _FILES / f"bridge-mcore-{os.getpid()}-{next(_counter)}"
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)


def buffer_path(buffer: Tensor) -> str | None:
    """The file of a buffer of `file_buffer`; None on a GPU."""
    return buffer.untyped_storage().filename if buffer.device.type == "cpu" else None


def ipc_arguments(buffer: Tensor) -> str:
    """Base64 of what rebuilds a CUDA buffer in another process (the arguments of torch's rebuild_cuda_tensor)."""
    _, arguments = reductions.reduce_tensor(buffer)
    return base64.b64encode(pickle.dumps(list(arguments))).decode()


def pickled_bucket(bucket: Tensor, entries: Sequence[Entry]) -> str:
    """Base64 of a bucket's handle and layout, as SGLang's `flattened_bucket` format has them."""
    metadata = [
        SimpleNamespace(
            name=e.name, shape=torch.Size(e.shape), dtype=getattr(torch, e.dtype), start_idx=e.start, end_idx=e.end,
            numel=e.end - e.start,
        )
        for e in entries
    ]  # fmt: skip
    file = io.BytesIO()
    with _by_name():
        _HandlePickler(file).dump({"flattened_tensor": bucket, "metadata": metadata})
    return base64.b64encode(file.getvalue()).decode()
