"""Weights on their way to an engine: two buffers of a byte budget, filled and sent in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from bridge_mcore.rollout.remote.dialect import Entry


class Sending(Protocol):
    """A bucket that is under way."""

    def wait(self) -> None:
        """Return when its memory may be written again. Failures are kept by the transport."""
        ...


class Buckets:
    """Packs tensors into buckets and hands each to `send`, while the next one is gathered and filled.

    Two buffers are held: while the servers copy one, the other is filled. A group of tensors is never cut (engines fuse
    q, k, v and gate, up, and may process a weight when its bucket ends). A group larger than the budget gets buffers of
    its size.
    """

    def __init__(
        self,
        budget: int,
        make: Callable[[int], Tensor],
        send: Callable[[Tensor, list[Entry]], Sending],
        digests: Digests | None = None,
        alignment: int = 1,
    ) -> None:
        """budget: bytes of one bucket. make: an uninitialised uint8 buffer of so many bytes. alignment: of tensors in
        the bucket, bytes."""
        self.budget, self.make, self.send, self.digests = budget, make, send, digests
        self.alignment = alignment
        self._buffers: list[Tensor | None] = [None, None]
        self._sending: Sending | None = None  # servers take one bucket after the other
        self._turn = 0
        self._entries: list[Entry] = []
        self._filled = 0
        #: bytes and buckets sent so far
        self.bytes = self.count = 0

    def fill(self, groups: Iterable[list[tuple[str, Tensor]]]) -> None:
        """Send every tensor of `groups`; returns when nothing is under way any more."""
        try:
            for pairs in groups:
                size = sum(t.nbytes + self.alignment - 1 for _, t in pairs)
                if self._entries and self._filled + size > self.budget:
                    self._ship()
                buffer = self._ready(size)
                for name, tensor in pairs:
                    self._add(buffer, name, tensor)
            if self._entries:
                self._ship()
        finally:
            self._wait()

    def _wait(self) -> None:
        if self._sending is not None:
            self._sending.wait()
            self._sending = None

    def _ready(self, size: int) -> Tensor:
        """The buffer whose turn it is (the other one may be under way), with room for `size` more bytes."""
        buffer = self._buffers[self._turn]
        if buffer is None or self._filled + size > buffer.numel():
            self._buffers[self._turn] = buffer = None  # freed before its successor is made
            buffer = self._buffers[self._turn] = self.make(max(self.budget, size))
        return buffer

    def _add(self, buffer: Tensor, name: str, tensor: Tensor) -> None:
        start = -(-self._filled // self.alignment) * self.alignment
        end = start + tensor.nbytes
        # One copy, also out of a view that is not contiguous.
        buffer[start:end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        self._entries.append(Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), start, end))
        self._filled = end
        if self.digests is not None:
            self.digests.add(name, buffer[start:end].view(tensor.dtype).view(tensor.shape))

    def _ship(self) -> None:
        buffer = self._buffers[self._turn]
        assert buffer is not None
        self._wait()
        self.bytes += self._filled
        self.count += 1
        self._sending = self.send(buffer[: self._filled], self._entries)
        self._entries, self._filled = [], 0
        self._turn = 1 - self._turn


#: HF projections that engines hold as one parameter, in this order.
_FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj",
          "up_proj": "gate_up_proj"}  # fmt: skip
#: Engines pad the rows of embedding and output layer with zeros to a multiple of this.
_VOCABULARY_MULTIPLE = 64


class Digests:
    """Digest of each parameter as an engine of one worker holds it, taken from the bytes that are sent."""

    def __init__(self, hexdigest: Callable[[Any], str], positive_zeros: bool) -> None:
        """hexdigest: how the engine writes a SHA-256. positive_zeros: it hashes -0 as 0."""
        self._hexdigest, self._positive_zeros = hexdigest, positive_zeros
        self._hashes: dict[str, Any] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """tensor: on CPU, as it is sent. Fused projections come one after the other."""
        parts = name.split(".")
        if "experts" in parts:
            return  # engines stack experts in layouts of their own; the probe speaks for them
        fused = ".".join(_FUSED.get(part, part) for part in parts)
        digest = self._hashes.setdefault(fused, hashlib.sha256())
        if self._positive_zeros:
            tensor = tensor + 0
        data = tensor.contiguous().view(-1).view(torch.uint8)
        digest.update(data.numpy().data)
        if parts[-2] in ("embed_tokens", "lm_head"):
            digest.update(bytes(-tensor.shape[0] % _VOCABULARY_MULTIPLE * (data.numel() // tensor.shape[0])))

    def hex(self) -> dict[str, str]:
        """Digest by the engine's parameter name."""
        return {name: self._hexdigest(digest) for name, digest in self._hashes.items()}
