"""Chat templates, which are programs that came with somebody's tokenizer, rendered in a process that can be ended.

jinja's sandbox keeps a template from code and files, not from working for ever: nested loops, a power of powers or a
text that doubles itself do so within it, and the last two inside one operation of the interpreter, where neither a
signal nor another thread stops them. So the work is done by a process (`chat_worker.py`) whose processor time and
memory the system limits, whatever the template does. The text is what transformers renders: it is its own function.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from bridge_mcore.config.json_file import one_line, parse_json, shown

#: What one rendering may take; a usual one takes a thousandth of it.
CPU_SECONDS, MEMORY = 5, 1 << 30
#: Characters that a template may make of none, and times the characters that it is given.
_MOST_TEXT, _MOST_TIMES = 1 << 20, 8
_SCRIPT = Path(__file__).with_name("chat_worker.py")
#: The environment that a template's process gets: no keys, no tokens.
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "TZ")


class ChatTemplateError(Exception):
    """A template that refuses its messages, or that does not come to an end; as text one line."""


class _Renderer:
    """The process, started when it is first asked, and anew where it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._template = ""

    def ask(self, template: str, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises ChatTemplateError if the template has ended the process."""
        with self._lock:
            for _ in range(2):
                process = self._running()
                said = None if self._template == template else template
                answer = _exchange(process, {**request, "template": said})
                self._template = template
                if answer is not None:
                    return answer
                code = self.close()
                if code != 0:  # 0: it was idle, and ended as the request came
                    break
        if code == -signal.SIGXCPU:
            raise ChatTemplateError(f"it is not done after {CPU_SECONDS} seconds of work")
        raise ChatTemplateError(f"the process that renders it has ended with code {code}")

    def _running(self) -> subprocess.Popen[bytes]:
        # A process that was forked shares the pipes of the one before: it must start its own.
        if self._process is None or self._owner != os.getpid():
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT), str(CPU_SECONDS), str(MEMORY)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                process_group=0,  # Ctrl-C in the terminal is for the trainer only
            )  # fmt: skip
            self._owner, self._template = os.getpid(), ""
        return self._process

    def close(self) -> int:
        """End the process; its exit code (negative: signal). May be called at any time."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return 0
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()  # it ends where its requests end
        process.stdout.close()
        return process.wait()


def _exchange(process: subprocess.Popen[bytes], request: dict[str, Any]) -> dict[str, Any] | None:
    """What the process answers; None if it has ended."""
    assert process.stdin is not None and process.stdout is not None
    content = json.dumps(request).encode()
    try:
        process.stdin.write(len(content).to_bytes(4, "little") + content)
        process.stdin.flush()
    except BrokenPipeError:
        return None
    length = process.stdout.read(4)
    answer = process.stdout.read(int.from_bytes(length, "little")) if len(length) == 4 else b""
    return parse_json(answer) if answer else None


_RENDERER = _Renderer()
atexit.register(_RENDERER.close)


def render_chat(
    template: str, messages: list[dict[str, str]], special_tokens: dict[str, str], generation_prompt: bool
) -> str:
    """The text that a chat template makes of messages, as `apply_chat_template` does.

    Raises ChatTemplateError if the template refuses them, takes more than CPU_SECONDS or MEMORY, or makes a text that
    is many times as long as what it was given.
    """
    most = _MOST_TEXT + _MOST_TIMES * sum(len(message["content"]) for message in messages)
    rest = {"add_generation_prompt": generation_prompt, **special_tokens}
    answer = _RENDERER.ask(template, {"messages": messages, "rest": rest, "most": most})
    if "error" in answer:
        raise ChatTemplateError(one_line(answer["error"]))
    if answer["text"] is None:
        raise ChatTemplateError(f"it makes {shown(answer['length'])} characters of one conversation")
    return answer["text"]
