"""Where the data of a tensor saved by `torch.save` lies in its file, without unpickling it as torch does.

A torch_dist file is many such archives one after another. Each holds a pickle that describes the tensor and a record
with its bytes, uncompressed, so that a window on the file is the tensor. Only what a plain tensor needs is understood;
anything else that the pickle names is refused, and nothing is ever called.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

_STORAGES = {
    "FloatStorage": torch.float32, "BFloat16Storage": torch.bfloat16, "HalfStorage": torch.float16,
    "DoubleStorage": torch.float64,
}  # fmt: skip
_MOST_BYTES = 1 << 20  # of a description: one tensor's takes a few hundred
_LOCAL_HEADER = 30  # bytes of a zip's local header before the name


@dataclass(frozen=True)
class SavedTensor:
    """A tensor in a file: strides in elements, `offset` the byte of its first element."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> tuple[_Storage, int, tuple, tuple]:
    return storage, int(offset), tuple(size), tuple(stride)


class _Description(pickle.Unpickler):
    """Understands the pickle of one tensor: the functions it names are replaced by ones that only note the sizes."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it stores {kind!r} of {dtype!r}")
        return _Storage(dtype, str(key))


class _Part(io.RawIOBase):
    """Bytes [start, start + length) of a file, as a file."""

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self._descriptor, self._start, self._length, self._at = descriptor, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = base + offset
        if self._at < 0:
            raise OSError("before the start of the archive")
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._length - self._at, 0)
        data = os.pread(self._descriptor, left if size < 0 else min(size, left), self._start + self._at)
        self._at += len(data)
        return data


def locate(descriptor: int, start: int, length: int) -> SavedTensor:
    """The tensor saved in bytes [start, start + length) of a file.

    Raises ValueError for anything but a plain float tensor whose data lies whole within those bytes.
    """
    try:
        with zipfile.ZipFile(_Part(descriptor, start, length)) as archive:
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            small = [records[name] for name in ("byteorder", "data.pkl") if name in records]
            if any(r.compress_type != zipfile.ZIP_STORED or r.file_size > _MOST_BYTES for r in small):
                raise ValueError("its description is compressed, or far too long")
            if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
                raise ValueError("its numbers are big-endian")
            storage, first, shape, stride = _Description(io.BytesIO(archive.read(records["data.pkl"]))).load()
            data = records[f"data/{storage.key}"]
        header = os.pread(descriptor, _LOCAL_HEADER, start + data.header_offset)
        if data.compress_type != zipfile.ZIP_STORED or header[:4] != b"PK\x03\x04":
            raise ValueError("its data is compressed or damaged")
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        begin = data.header_offset + _LOCAL_HEADER + name + extra
        last = first + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if min(shape, default=1) < 1 or min(first, *stride, 0) < 0:
            raise ValueError("it is empty, or lies backwards")
        if (last + 1) * storage.dtype.itemsize > data.file_size or begin + data.file_size > length:
            raise ValueError("its data ends before the tensor does")
    except ValueError:
        raise
    except Exception as error:  # a damaged zip or pickle raises nearly anything
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return SavedTensor(storage.dtype, shape, stride, start + begin + first * storage.dtype.itemsize)
