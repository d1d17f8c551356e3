"""A model in a Megatron distributed checkpoint (torch_dist), under HF names and by slice, whatever layout wrote it.

Three ways of naming are read: Megatron's, with all layers in one tensor or spelt out (`singleton_local_shards`), and
that of this project's own runs, whose tensors are `theta/NAME`. Pickled objects in a checkpoint are never loaded.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge_mcore.checkpoint.hf import expected_tensors, raise_misfits
from bridge_mcore.checkpoint.safetensors_file import blocks, window
from bridge_mcore.checkpoint.sharded import METADATA, read_metadata
from bridge_mcore.checkpoint.torch_zip import SavedTensor, locate
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families.base import Family, ModelShape
from bridge_mcore.model.families.mapping import Plain

#: What may stand before Megatron's names: NeMo and others save a wrapped model; a run of this project saves θ so.
_PREFIXES = ("", "module.", "model.", "theta/")
_PADDING_BYTES = 16 << 20
_LAYERS, _EXPERTS, _STORED_EXPERTS = "decoder.layers.", ".local_experts.", ".experts."
#: Norms have other names in Megatron's checkpoints: those of the linear layers that Transformer Engine fuses them with,
#: or, where Megatron's own layer has none, those that Megatron-Bridge gives them.
_STORED_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "self_attn_bda.norm.weight": "self_attention.linear_proj.post_layernorm.weight",
    "mlp_bda.norm.weight": "mlp.linear_fc2.post_layernorm.weight",
}
#: What a training checkpoint holds beside the model.
_BESIDE = (
    "optimizer.",
    "optimizer/",
    "rng_state",
    "rerun_state_machine_state",
    "chained_",
    "slot/",
    "slot_optimizer/",
    "w/",
)


@dataclass(frozen=True)
class Place:
    """A stored tensor, and which entry of its leading axes (layer, expert)."""

    key: str
    index: tuple[int, ...] = ()


def places(name: str) -> list[Place]:
    """Where the parameter of this global name may be stored: all layers in one tensor first, then spelt out."""
    if not name.startswith(_LAYERS):
        return [Place(name)]
    layer, rest = name.removeprefix(_LAYERS).split(".", 1)
    expert: tuple[int, ...] = ()
    before, mark, after = rest.partition(_EXPERTS)
    stacked = spelt = rest
    if mark:
        number, after = after.split(".", 1)
        expert = (int(number),)
        stacked, spelt = f"{before}{_STORED_EXPERTS}{after}", f"{before}{_STORED_EXPERTS}{number}.{after}"
    out = []
    for form, index in ((stacked, (int(layer), *expert)), (spelt, ())):
        start = _LAYERS if index else f"{_LAYERS}{layer}."
        out += [Place(start + alias, index) for alias in (_STORED_NORMS.get(form), form) if alias]
    return [*out, Place(name)]


@dataclass(frozen=True)
class _Chunk:
    """A stored piece: its first row and column in the parameter, and where in which file it is."""

    row: int
    rows: int
    column: int
    columns: int
    lead: tuple[int, ...]  # the entry of the piece's own leading axes
    file: str
    start: int
    length: int


class TensorStore:
    """Any rows and columns of the tensors of a torch_dist checkpoint. Reads nothing but the metadata by itself.

    Raises CheckpointError for a directory that is no such checkpoint, is damaged, or names files outside of it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        if not (self.directory / METADATA).is_file():
            raise CheckpointError(f"{directory} is no Megatron distributed checkpoint: it has no {METADATA} file")
        files = [p.name for p in self.directory.iterdir() if p.is_file()]
        metadata, self.tensors = read_metadata(self.directory, files, others=True)
        self._chunks: dict[str, dict[tuple[int, ...], list[_Chunk]]] = {}
        self._saved: dict[tuple[str, int], SavedTensor] = {}
        self._lock = threading.Lock()  # several threads read
        self._open: dict[str, int] = {}
        self._stored: dict[str, list[tuple[Any, Any]]] = {}
        for index, info in metadata.storage_data.items():
            if index.fqn in self.tensors:
                self._stored.setdefault(index.fqn, []).append((index, info))

    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        names = {info.relative_path for pieces in self._stored.values() for _, info in pieces}
        return [self.directory / name for name in sorted(names)]

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].properties.dtype

    def _index(self, key: str, leading: int) -> None:
        """Sort a tensor's pieces by the entry of its first `leading` axes."""
        with self._lock:
            if key not in self._chunks:
                self._chunks[key] = self._sorted(key, leading)

    def _sorted(self, key: str, leading: int) -> dict[tuple[int, ...], list[_Chunk]]:
        out: dict[tuple[int, ...], list[_Chunk]] = {}
        sizes = {tuple(c.offsets): tuple(c.sizes) for c in self.tensors[key].chunks}
        for index, info in self._stored[key]:
            offset = tuple(index.offset or (0,) * len(self.shape(key)))
            size = sizes.get(offset)
            if size is None or getattr(info, "transform_descriptors", None):
                raise CheckpointError(f"{self.directory}: a piece of {key} is compressed, or lies nowhere")
            (row, column), (rows, columns) = _matrix(offset[leading:]), _matrix(size[leading:], 1)
            for lead in product(*(range(n) for n in size[:leading])):
                at = tuple(o + i for o, i in zip(offset, lead, strict=False))
                chunk = _Chunk(row, rows, column, columns, lead, info.relative_path, info.offset, info.length)
                out.setdefault(at, []).append(chunk)
        return out

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._open:
                self._open[file] = descriptor = os.open(self.directory / file, os.O_RDONLY)
                weakref.finalize(self, os.close, descriptor)
            return self._open[file]

    def _locate(self, file: str, start: int, length: int) -> SavedTensor:
        try:
            if (file, start) not in self._saved:
                self._saved[file, start] = locate(self._descriptor(file), start, length)
            return self._saved[file, start]
        except PermissionError as error:
            raise CheckpointError(f"{self.directory / file} cannot be read: {error.strerror}") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.directory / file} is damaged at byte {start}: {error}") from error

    def read(self, place: Place, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> Tensor:
        """Rows [first, end) of a stored parameter, of a matrix optionally some columns; not to be written to."""
        shape = self.shape(place.key)
        leading = len(place.index)
        vector = len(shape) == leading + 1
        self._index(place.key, leading)
        low, high = columns or (0, 1 if vector else shape[leading + 1])
        out: Tensor | None = None
        found = 0
        seen: list[tuple[int, int, int, int]] = []
        for chunk in self._chunks[place.key].get(place.index, ()):
            top, bottom = max(rows[0], chunk.row), min(rows[1], chunk.row + chunk.rows)
            left, right = max(low, chunk.column), min(high, chunk.column + chunk.columns)
            if top >= bottom or left >= right:
                continue
            if any(top < b and a < bottom and left < d and c < right for a, b, c, d in seen):
                raise CheckpointError(f"{self.directory}: pieces of {place.key} overlap")
            seen.append((top, bottom, left, right))
            part = self._piece(chunk, vector, top - chunk.row, bottom - chunk.row)
            part = part if vector else part[:, left - chunk.column : right - chunk.column]
            if part.dtype != self.dtype(place.key):
                raise CheckpointError(f"{self.directory / chunk.file}: {place.key} is {part.dtype} there")
            found += part.numel()
            if top == rows[0] and bottom == rows[1] and left == low and right == high:
                return part
            if out is None:
                size = (rows[1] - rows[0],) if vector else (rows[1] - rows[0], high - low)
                out = torch.empty(size, dtype=part.dtype)
            target = out[top - rows[0] : bottom - rows[0]]
            (target if vector else target[:, left - low : right - low]).copy_(part)
        wanted = (rows[1] - rows[0]) * (1 if vector else high - low)
        if out is None or found != wanted:
            raise CheckpointError(f"{self.directory} holds {found} of {wanted} elements of a part of {place.key}")
        return out

    def _piece(self, chunk: _Chunk, vector: bool, top: int, bottom: int) -> Tensor:
        """Rows of a stored piece, on a window of its file."""
        saved = self._locate(chunk.file, chunk.start, chunk.length)
        axes = len(chunk.lead)
        own = (chunk.rows,) if vector else (chunk.rows, chunk.columns)
        if saved.shape[axes:] != own or any(i >= n for i, n in zip(chunk.lead, saved.shape, strict=False)):
            raise CheckpointError(f"{self.directory / chunk.file} does not hold the shapes that its metadata says")
        lead = sum(i * step for i, step in zip(chunk.lead, saved.stride, strict=False))
        steps = saved.stride[axes:]
        first = lead + top * steps[0]
        last = lead + (bottom - 1) * steps[0] + sum((n - 1) * s for n, s in zip(own[1:], steps[1:], strict=True))
        try:
            flat = window(
                self._descriptor(chunk.file), saved.dtype, (last + 1 - first,),
                saved.offset + first * saved.dtype.itemsize,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.directory / chunk.file} cannot be mapped: {error}") from error
        return flat.as_strided((bottom - top, *own[1:]), steps)


def _matrix(sizes: tuple[int, ...], column: int = 0) -> tuple[int, int]:
    return (sizes[0], column) if len(sizes) == 1 else (sizes[0], sizes[1])


@dataclass(frozen=True)
class _Stack:
    """One stored part of a parameter: `rows` rows of shape `width`, which follow those of the part before."""

    place: Place
    rows: int
    width: tuple[int, ...]


def _is_beside(key: str) -> bool:
    return key.startswith(_BESIDE) or "_extra_state" in key


class MegatronModel:
    """The model of a torch_dist checkpoint as a `TensorSource`: HF names, padding undone, any slice.

    What it lacks, has too much or has in another shape is listed when it is opened, all at once (CheckpointError).
    """

    def __init__(self, store: TensorStore, family: Family, shape: ModelShape) -> None:
        self.store, self.directory, self._shape = store, store.directory, shape
        marked = (p for p in _PREFIXES if f"{p}embedding.word_embeddings.weight" in store.tensors)
        self.prefix = prefix = next(marked, "")
        self._shapes = expected_tensors(family, shape)
        self._hf: dict[str, tuple[Plain, int]] = {}
        self._stacks: dict[str, list[_Stack]] = {}
        known = {prefix + "output_layer.weight"} if shape.tied else set()
        missing, wrong = [], []
        for mapping in family.mappings(shape):
            stacks = self._find(mapping)
            known |= {prefix + place.key for place in places(mapping.mcore)} | {s.place.key for s in stacks}
            if not stacks:
                missing.append(mapping.mcore)
                continue
            rows, width = sum(self._shapes[name][0] for name in mapping.hf), self._shapes[mapping.hf[0]][1:]
            held = sum(s.rows for s in stacks)
            may_pad = mapping.padded(1, 2) > 1  # a vocabulary may hold more rows than the model's
            kinds = {store.dtype(s.place.key) for s in stacks}
            if len(kinds) > 1:
                wrong.append(f"{mapping.mcore}: parts of {len(kinds)} dtypes")
            if any(s.width != width for s in stacks) or held < rows or (held > rows and not may_pad):
                found = [(s.rows, *s.width) for s in stacks]
                wrong.append(f"{mapping.mcore}: {' + '.join(map(str, found))} instead of {(rows, *width)}")
            self._stacks[mapping.mcore] = stacks
            self._hf |= {name: (mapping, i) for i, name in enumerate(mapping.hf)}
        raise_misfits(
            f"{store.directory} is not the model that its config.json describes",
            missing=missing,
            unexpected=sorted(k for k in store.tensors if k not in known and not _is_beside(k)),
            misshapen=wrong,
        )

    def _find(self, mapping: Plain) -> list[_Stack]:
        """The stored parts of a parameter; none if it is not there."""
        for place in places(mapping.mcore):
            for suffixes in (("",), *((("_w", "_v"), (".gate", ".up")) if mapping.stacks == 2 else ())):
                stacks = [self._stack(Place(self.prefix + place.key + suffix, place.index)) for suffix in suffixes]
                if None not in stacks:
                    return [s for s in stacks if s is not None]
        return []

    def _stack(self, place: Place) -> _Stack | None:
        if place.key not in self.store.tensors:
            return None
        size = self.store.shape(place.key)
        lead, own = size[: len(place.index)], size[len(place.index) :]
        if not own or any(i >= n for i, n in zip(place.index, lead, strict=False)):
            return None
        if lead != (self._shape.layers, self._shape.experts)[: len(lead)]:
            what = "layers" if len(lead) == 1 else "layers and experts"
            raise CheckpointError(f"{self.directory}: {place.key} has {lead} {what}, config.json says otherwise")
        return _Stack(place, own[0], own[1:])

    def names(self) -> set[str]:
        return set(self._hf)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self.store.dtype(self._stacks[self._hf[name][0].mcore][0].place.key)

    def block(self, name: str, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> Tensor:
        """See `TensorSource`."""
        mapping, which = self._hf[name]
        total = sum(self._shapes[hf][0] for hf in mapping.hf)
        out: Tensor | None = None
        at = 0
        for s in mapping.segments(self._shape, total):
            low, high = max(rows[0], s.row), min(rows[1], s.row + s.rows)
            if s.tensor == which and low < high:
                for first, part in self._rows(mapping.mcore, at + low - s.row, at + high - s.row, columns):
                    if part.shape[0] == rows[1] - rows[0]:
                        return part
                    if out is None:
                        out = torch.empty(rows[1] - rows[0], *part.shape[1:], dtype=part.dtype)
                    start = low + first - (at + low - s.row) - rows[0]
                    out[start : start + part.shape[0]] = part
            at += s.rows
        assert out is not None  # segments cover every row of every tensor
        return out

    def _rows(self, mcore: str, low: int, high: int, columns: tuple[int, int] | None) -> Iterator[tuple[int, Tensor]]:
        """(first row in the parameter, rows of a stored part)."""
        at = 0
        for stack in self._stacks[mcore]:
            top, bottom = max(low, at), min(high, at + stack.rows)
            if top < bottom:
                yield top, self.store.read(stack.place, (top - at, bottom - at), columns)
            at += stack.rows

    def remarks(self) -> list[str]:
        """What a user should know: rows of the vocabulary beyond the model's, which are cut off."""
        out = []
        for name, (mapping, _) in self._hf.items():
            stacks, rows = self._stacks[mapping.mcore], sum(self._shapes[hf][0] for hf in mapping.hf)
            held = sum(s.rows for s in stacks)
            if held > rows:
                width = prod(stacks[0].width) * 4
                empty = all(
                    not self.store.read(stacks[0].place, (rows + low, rows + high)).any()
                    for low, high in blocks(held - rows, width, _PADDING_BYTES)
                )
                what = "zeros, as padding is" if empty else "not zeros: check that vocab_size in config.json is right"
                out.append(f"{name}: {held - rows} rows beyond the vocabulary of {rows} are left out; they are {what}")
        return out
