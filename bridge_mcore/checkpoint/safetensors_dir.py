"""Read a directory of safetensors files, sharded or not. Never pickle, never a path outside the directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bridge_mcore.errors import CheckpointError


class SafetensorsDirectory:
    """Tensors by name, read lazily from memory-mapped files.

    Raises CheckpointError, naming the file, for a missing, truncated or corrupt one and for a hostile index.
    """

    def __init__(self, directory: Path, stem: str = "model") -> None:
        self.directory = Path(directory)
        self._files: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        index = self.directory / f"{stem}.safetensors.index.json"
        single = self.directory / f"{stem}.safetensors"
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text())["weight_map"]
                self._files = {str(k): str(v) for k, v in weight_map.items()}
            except (ValueError, KeyError, AttributeError) as error:
                raise CheckpointError(f"{index} is not a valid index: {error!r}") from error
            for name in sorted(set(self._files.values())):
                if Path(name).name != name:
                    raise CheckpointError(f"{index} points outside its directory: '{name}'")
                found = set(self._handle(name).keys())
                lost = [k for k, v in self._files.items() if v == name and k not in found]
                if lost:
                    raise CheckpointError(
                        f"{self.directory / name} lacks {', '.join(lost[:5])}, which the index promises"
                    )
        elif single.is_file():
            self._files = {name: single.name for name in self._handle(single.name).keys()}  # noqa: SIM118 - no dict
        else:
            pickled = sorted(p.name for p in self.directory.glob("*.bin"))
            more = f"; {pickled[0]} is a pickle and is never loaded, convert it to safetensors" if pickled else ""
            raise CheckpointError(f"{self.directory} has no {stem}.safetensors{more}")

    def _handle(self, name: str) -> Any:
        if name not in self._open:
            path = self.directory / name
            if not path.is_file():
                raise CheckpointError(f"{path} is missing, but the index names it: the checkpoint is incomplete")
            try:
                self._open[name] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is corrupt or truncated ({error}); fetch or write it again") from error
        return self._open[name]

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle(self._files[name]).get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        try:
            return self._handle(self._files[name]).get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self.directory / self._files[name]}: cannot read {name}: {error}") from error
