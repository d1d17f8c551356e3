"""The metadata of a distributed checkpoint, which is a pickle: read with a closed list of classes, and judged."""

from __future__ import annotations

import pickle
from math import prod
from typing import Any

import torch

_DCP = "torch.distributed.checkpoint"
_ALLOWED = {
    *(
        (f"{_DCP}.metadata", name)
        for name in (
            "Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "MetadataIndex",
            "StorageMeta", "_MEM_FORMAT_ENCODING", "BytesStorageMetadata",
        )
    ),
    *((f"{_DCP}.planner", name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}  # fmt: skip


class _Ignored:
    """Stands for an object that is not needed."""

    def __init__(self, *_: object) -> None:
        pass


class MetadataUnpickler(pickle.Unpickler):
    """Knows the classes of DCP's metadata and no others: a pickle could name any function to be called."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib":  # where it was written, which concerns nobody
            return _Ignored
        allowed = (module, name) in _ALLOWED or (module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype))
        if not allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def check_entry(key: str, entry: Any, stored: list[Any]) -> None:
    """Raise ValueError or TypeError for a tensor whose pieces the metadata cannot mean so."""
    size = tuple(entry.size)
    if not isinstance(entry.properties.dtype, torch.dtype) or not all(type(n) is int and n >= 0 for n in size):
        raise ValueError(f"{key} has no dtype, or no size")
    if len(stored) != len(entry.chunks):
        raise ValueError(f"{key} has {len(entry.chunks)} pieces, of which {len(stored)} are in files")
    held = 0
    for chunk in entry.chunks:
        offset, own = tuple(chunk.offsets), tuple(chunk.sizes)
        numbers = (*offset, *own)
        if len(offset) != len(size) or len(own) != len(size) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"a piece of {key} has another number of dimensions")
        if any(o + n > end for o, n, end in zip(offset, own, size, strict=True)):
            raise ValueError(f"a piece of {key} lies outside of it")
        held += prod(own)
    if held > prod(size):
        raise ValueError(f"the pieces of {key} overlap")
    for info in stored:
        if type(info.offset) is not int or type(info.length) is not int or min(info.offset, info.length) < 0:
            raise ValueError(f"a piece of {key} lies nowhere in its file")
