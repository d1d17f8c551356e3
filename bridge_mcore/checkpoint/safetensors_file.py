"""One safetensors file, by slice: its header, windows on its tensors, and writing in any order.

The format: eight bytes that give the header's length, the header as JSON (dtype, shape and place of each tensor), then
the tensors' bytes without gaps. See https://github.com/huggingface/safetensors. The safetensors library maps whole
files and writes them from whole tensors; a conversion in bounded memory needs parts of both.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge_mcore.config.json_file import one_line, parse_json
from bridge_mcore.errors import CheckpointError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
#: The format's own limit. A header of that size would describe a million tensors.
MAX_HEADER = 100_000_000
_POPULATE_READ = 22  # Linux's MADV_POPULATE_READ
#: Bytes per system call. Longer writes are slower on a virtual machine that returns free memory to its host: they seem
#: to be cached in large pages, which must be fetched back first.
_WRITE = 256 << 10


@dataclass(frozen=True)
class Stored:
    """A tensor's place in a file: the byte at which its data starts."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name. Nothing of them is read, but everything that is said of them is checked.

    Raises CheckpointError for a file that is truncated, damaged or made to mislead: a header beyond the format's limit,
    tensors that overlap, leave gaps or end outside the file, sizes that do not fit shapes, repeated names.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"its header would end at byte {8 + length} of {size}")
            if length > MAX_HEADER:
                raise ValueError(f"its header of {length} bytes is beyond the format's limit of {MAX_HEADER}")
            header = parse_json(file.read(length), _without_repeats)
        return _tensors(header, 8 + length, size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is corrupt or truncated ({one_line(error)}); fetch or write it again") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names something twice")
    return found


def _tensors(header: Any, start: int, size: int) -> dict[str, Stored]:
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    out: dict[str, Stored] = {}
    ends: dict[int, int] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (low, high) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in DTYPES:
            raise ValueError(f"{name} has dtype {dtype!r}, which is not known")
        if not all(type(n) is int and n >= 0 for n in (*shape, low, high)):
            raise ValueError(f"{name} has a shape or place that is no row of sizes")
        out[name] = Stored(DTYPES[dtype], tuple(shape), start + low)
        if high - low != out[name].nbytes:
            raise ValueError(f"{name} of shape {shape} has {high - low} bytes instead of {out[name].nbytes}")
        if high > low:
            if low in ends:
                raise ValueError(f"{name} lies where another tensor does")
            ends[low] = high
    at = 0
    for low in sorted(ends):
        if low != at:
            raise ValueError(f"byte {low} should follow byte {at}")
        at = ends[low]
    if start + at != size:
        raise ValueError(f"its tensors end at byte {start + at} of {size}")
    return out


def window(descriptor: int, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> Tensor:
    """A tensor in the file itself: memory-mapped, and unmapped with the last tensor that looks at it.

    The pages are the file's until someone writes to them; then they are a copy of this process's.
    """
    count = prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    # torch keeps the mapping alive, and the mapping its own descriptor.
    view = mmap.mmap(descriptor, offset - start + count * dtype.itemsize, offset=start, access=mmap.ACCESS_COPY)
    with contextlib.suppress(OSError):  # since Linux 5.14; page by page, on demand, costs as much as the copy
        view.madvise(_POPULATE_READ)
    return torch.frombuffer(view, dtype=dtype, count=count, offset=offset - start).view(shape)


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the host, copied only if it is not contiguous."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data


def header_of(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> tuple[bytes, dict[str, Stored]]:
    """The header of a file that holds these tensors one after another, and where each will lie."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        places[name] = Stored(dtype, tuple(shape), at)
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [at, at + places[name].nbytes],
        }
        at += places[name].nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format pads with spaces, so that data starts aligned
    start = 8 + len(text)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: Stored(p.dtype, p.shape, start + p.offset) for name, p in places.items()}


class SteadyFile(io.FileIO):
    """A raw file that takes a little at a time; `io.BufferedWriter` on it writes all. See `_WRITE`."""

    def write(self, data: Any) -> int:
        return super().write(memoryview(data)[:_WRITE])


class SafetensorsWriter:
    """Writes one file; the parts of its tensors may come in any order. A context manager, which ends on the disk.

    Every row must be written once: the file is only whole then, and `close` raises CheckpointError otherwise.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.path = Path(path)
        header, self.places = header_of(tensors)
        self.size = len(header) + sum(p.nbytes for p in self.places.values())
        self._missing = {name: p.nbytes for name, p in self.places.items()}
        self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115 - closed by the context
        self._file.truncate(self.size)
        _write_at(self._file.fileno(), memoryview(header), 0)

    def write(self, name: str, row: int, rows: Tensor) -> None:
        """Put consecutive rows of a tensor, from row `row` on, in its place."""
        place = self.places[name]
        if rows.dtype != place.dtype or rows.shape[1:] != place.shape[1:] or row + rows.shape[0] > place.shape[0]:
            raise ValueError(f"{rows.dtype} rows {tuple(rows.shape)} do not fit {name} {place.shape} at row {row}")
        data = bytes_of(rows)
        width = prod(place.shape[1:]) * place.dtype.itemsize
        _write_at(self._file.fileno(), data, place.offset + row * width)
        self._missing[name] -= len(data)

    def close(self) -> None:
        """Force the file to disk."""
        lacking = [name for name, left in self._missing.items() if left]
        if lacking:
            raise CheckpointError(f"{self.path}: {', '.join(lacking[:3])} were not written as a whole")
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


class SafetensorsStream:
    """Writes one file from whole tensors that come one after another, of which none is known before. See `full`.

    The header goes into space that is kept for it, and the rest of that space is filled with blanks, as the format
    allows.
    """

    SPACE = 128 << 10

    def __init__(self, path: Path) -> None:
        self.tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self.size = 0  # bytes of the tensors
        self._header = 64  # bytes that the header will have, at most
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - `close` ends it

    def full(self, name: str, tensor: Tensor) -> bool:
        """Whether the header has no space for one more tensor."""
        return self._header + _entry_bytes(name, tensor) > self.SPACE

    def append(self, name: str, tensor: Tensor) -> None:
        """Write a tensor behind those before."""
        self._header += _entry_bytes(name, tensor)
        _write_at(self._file.fileno(), bytes_of(tensor), self.SPACE + self.size)
        self.tensors[name] = (tensor.dtype, tuple(tensor.shape))
        self.size += tensor.nbytes

    def close(self) -> None:
        """Write the header and force the file to disk."""
        header, _ = header_of(self.tensors)
        header = (self.SPACE - 8).to_bytes(8, "little") + header[8:].ljust(self.SPACE - 8)
        _write_at(self._file.fileno(), memoryview(header), 0)
        os.fsync(self._file.fileno())
        self._file.close()


def _entry_bytes(name: str, tensor: Tensor) -> int:
    """What a tensor adds to a header, at most."""
    return 4 * len(name) + 24 * tensor.dim() + 120


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(descriptor, data[:_WRITE], offset)
        data, offset = data[done:], offset + done


def blocks(rows: int, width: int, limit: int) -> Iterable[tuple[int, int]]:
    """Cut rows of `width` bytes into ranges (first, end) of at most `limit` bytes, or one row."""
    step = max(1, limit // max(width, 1))
    return ((low, min(low + step, rows)) for low in range(0, rows, step))
