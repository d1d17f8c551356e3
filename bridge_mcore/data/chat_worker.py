"""The process in which chat templates run: messages in on standard input, text out on standard output.

Started by path, by `chat_render.py`; it imports nothing of this package, and of transformers what renders templates. A
message is four bytes that give its length, and JSON.
"""

from __future__ import annotations

import json
import resource
import select
import sys
from typing import Any

#: Seconds without a request after which it ends: it is needed at a run's start and rarely later.
IDLE_SECONDS = 20.0


def main(cpu_seconds: int, memory: int) -> None:
    """Answer requests until standard input ends, each within `cpu_seconds` of work and `memory` bytes more than now."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    template = ""
    while (request := _read()) is not None:
        template = request["template"] or template
        used = resource.getrusage(resource.RUSAGE_SELF)
        # A soft limit that moves on: what is over it ends this process, also inside one long operation of the
        # interpreter, which no signal handler and no other thread could interrupt.
        limit = int(used.ru_utime + used.ru_stime) + 1 + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            rendered: Any = render_jinja_template([request["messages"]], chat_template=template, **request["rest"])
            text = rendered[0][0]  # of the only conversation
            answer = {"text": text if len(text) <= request["most"] else None, "length": len(text)}
            _write(answer)
        except MemoryError:
            _write({"error": "it needs more memory than a template may take"})
        except Exception as error:  # templates are programs of their own and raise what they like
            _write({"error": str(error) or type(error).__name__})


def _read() -> Any:
    if not select.select([sys.stdin.buffer], [], [], IDLE_SECONDS)[0]:
        return None
    length = sys.stdin.buffer.read(4)
    return json.loads(sys.stdin.buffer.read(int.from_bytes(length, "little"))) if len(length) == 4 else None


def _write(answer: Any) -> None:
    content = json.dumps(answer).encode()
    sys.stdout.buffer.write(len(content).to_bytes(4, "little") + content)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
