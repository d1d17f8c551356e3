"""Messages over a pipe: eight bytes of length, then JSON in ASCII, so that lone surrogates survive."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

_LENGTH = struct.Struct(">Q")
#: Largest message in bytes.
MAX_FRAME = 256 << 20


def write_frame(fd: int, message: Any) -> None:
    """Write ``message`` whole. Raises OSError (BrokenPipeError) if nobody reads."""
    body = json.dumps(message).encode("ascii")
    data = memoryview(_LENGTH.pack(len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


def read_frame(fd: int, limit: int = MAX_FRAME) -> Any:
    """The next message. Raises EOFError at the end of the pipe, ValueError for what is no message or is too long."""
    (length,) = _LENGTH.unpack(_exactly(fd, _LENGTH.size))
    if length > limit:
        raise ValueError(f"a message of {length} bytes")
    return json.loads(_exactly(fd, length))


def _exactly(fd: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = os.read(fd, min(count - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)
