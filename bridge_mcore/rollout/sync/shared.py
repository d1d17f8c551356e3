"""Handles on memory of this host, in the form that SGLang's workers open: shared memory on CPU, CUDA IPC on GPUs."""

from __future__ import annotations

import base64
import io
import os
import pickle
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
    _keep_sockets()
    with _by_name():
        # Not share_memory_(), which copies the memory that it shares.
        return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))


def _keep_sockets() -> None:
    """Close this process's sockets in what it executes: torch starts a manager of shared memory that lives on, and
    sockets of process groups would stay open in it."""
    for entry in os.scandir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        descriptor = int(entry.name)
        with suppress(OSError):  # the listing's own, which is closed by now
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.set_inheritable(descriptor, False)


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


def _check_room(size: int) -> None:
    """Raises TrainingError if the shared memory of this host (a container has 64 MiB by default) has no room."""
    free = shutil.disk_usage(_FILES).free if _FILES.is_dir() else size
    if free < size:
        raise TrainingError(
            f"/dev/shm has {free / 2**20:.0f} MiB left, a bucket of weights takes {size / 2**20:.0f}: lower "
            "sync.bucket_mib, give the container more (docker run --shm-size), or use sync.method=disk"
        )


def file_buffer(size: int, device: torch.device) -> Tensor:
    """As `shared_buffer`, for workers that map a file: on CPU the buffer is `buffer_path` and nothing else.

    The file is anonymous memory of this process: it has no name that could be taken before, only processes of the same
    user open it, and it is gone with this process, however that ends. `release_path` ends it before.
    """
    if device.type != "cpu":
        return shared_buffer(size, device)
    descriptor = os.memfd_create("bridge-mcore", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        return torch.from_file(f"/proc/self/fd/{descriptor}", shared=True, size=size, dtype=torch.uint8)
    except BaseException:
        os.close(descriptor)
        raise


def buffer_path(buffer: Tensor) -> str | None:
    """Where workers on this host open a buffer of `file_buffer`; None for other memory."""
    name = buffer.untyped_storage().filename if buffer.device.type == "cpu" else None
    return None if name is None else name.replace("/proc/self/", f"/proc/{os.getpid()}/")


def release_path(path: str) -> None:
    """Nobody will open the file of a buffer any more; its memory goes with the buffer."""
    os.close(int(path.rpartition("/")[2]))


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
