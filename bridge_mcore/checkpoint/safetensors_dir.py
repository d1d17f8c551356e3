"""Read a directory of safetensors files, sharded or not, by slice. Never pickle, never a path outside the directory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bridge_mcore.checkpoint.safetensors_file import Stored, read_header, window
from bridge_mcore.config.json_file import read_json_object, shown
from bridge_mcore.config.model_files import lies_inside
from bridge_mcore.errors import CheckpointError

#: Largest index that is read: a million tensors need no more.
MAX_INDEX = 256 << 20


class TensorSource(Protocol):
    """What gives tensors under HF names by slice: a directory, a Megatron checkpoint, one with an adapter merged."""

    directory: Path

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def block(self, name: str, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> Tensor:
        """Rows [first, end) of a tensor, of a matrix optionally some columns. Not to be written to."""
        ...


class SafetensorsDirectory:
    """Tensors by name. Only what is asked for is mapped into memory, and only while it is used.

    Raises CheckpointError, naming the file, for a missing, truncated or corrupt one and for a hostile index.
    """

    def __init__(self, directory: Path, stem: str = "model") -> None:
        self.directory = Path(directory)
        self._tensors: dict[str, tuple[str, Stored]] = {}
        self._open: dict[str, int] = {}
        index = self.directory / f"{stem}.safetensors.index.json"
        single = self.directory / f"{stem}.safetensors"
        if index.is_file():
            promised = _read_index(index)
            if single.is_file() and single.name not in promised.values():
                raise CheckpointError(
                    f"{self.directory} holds both {single.name} and an index of other files: which is meant? remove one"
                )
            for name in sorted(set(promised.values())):
                found = self._header(name)
                lost = [k for k, v in promised.items() if v == name and k not in found]
                if lost:
                    raise CheckpointError(
                        f"{self.directory / name} lacks {', '.join(lost[:5])}, which the index promises"
                    )
                spare = sorted(k for k in found if promised.get(k) != name)
                if spare:
                    raise CheckpointError(
                        f"{self.directory / name} holds {', '.join(spare[:5])}, which the index does not"
                    )
                self._tensors |= {k: (name, found[k]) for k, v in promised.items() if v == name}
        elif single.is_file():
            self._tensors = {k: (single.name, v) for k, v in self._header(single.name).items()}
        else:
            pickled = sorted(p.name for p in self.directory.glob("*.bin"))
            more = f"; {pickled[0]} is a pickle and is never loaded, convert it to safetensors" if pickled else ""
            raise CheckpointError(f"{self.directory} has no {stem}.safetensors{more}")

    def _header(self, name: str) -> dict[str, Stored]:
        path = self.directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, but the index names it: the checkpoint is incomplete")
        return read_header(path)

    def _descriptor(self, file: str) -> int:
        if file not in self._open:
            try:
                self._open[file] = descriptor = os.open(self.directory / file, os.O_RDONLY)
            except OSError as error:
                raise CheckpointError(f"{self.directory / file} cannot be read: {error}") from error
            weakref.finalize(self, os.close, descriptor)
        return self._open[file]

    def names(self) -> set[str]:
        return set(self._tensors)

    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return [self.directory / name for name in sorted({file for file, _ in self._tensors.values()})]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name][1].dtype

    def tensor(self, name: str) -> Tensor:
        """A whole tensor. Its pages are the file's until someone writes to them."""
        file, stored = self._tensors[name]
        return self._window(file, stored.dtype, stored.shape, stored.offset)

    def block(self, name: str, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> Tensor:
        """See `TensorSource`."""
        file, stored = self._tensors[name]
        width = stored.nbytes // stored.shape[0] if stored.nbytes else 0
        shape = (rows[1] - rows[0], *stored.shape[1:])
        out = self._window(file, stored.dtype, shape, stored.offset + rows[0] * width)
        return out if columns is None else out[:, columns[0] : columns[1]]

    def _window(self, file: str, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> Tensor:
        try:
            return window(self._descriptor(file), dtype, shape, offset)
        except (OSError, ValueError) as error:  # the file has shrunk since its header was read, or memory is short
            raise CheckpointError(f"{self.directory / file} cannot be mapped: {error}") from error


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> file of an index, whose files are all in its directory."""
    files = read_json_object(path, MAX_INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f"{path} is not a valid index: it has no weight_map of tensors to files")
    if not files:
        raise CheckpointError(f"{path} is not a valid index: it names no tensor")
    for name in sorted(set(files.values())):
        if not lies_inside(name):
            raise CheckpointError(f"{path} points outside its directory: {shown(name)}")
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{path} names {shown(name)}, which is no safetensors file; nothing else is read")
    return files


def same(a: TensorSource, one: str, b: TensorSource, other: str, parts: Iterable[tuple[int, int]]) -> bool:
    """Whether two tensors of the same shape have the same bits, looked at part by part."""
    return a.dtype(one) == b.dtype(other) and all(
        torch.equal(a.block(one, rows).view(torch.uint8), b.block(other, rows).view(torch.uint8)) for rows in parts
    )
