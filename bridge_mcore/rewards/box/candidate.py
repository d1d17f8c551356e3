"""What happens inside one process of the box: limits are put on, then a program that nobody trusts runs.

Everything here runs after a fork of the warden, whose interpreter is warm; nothing of the judge (expected outputs,
environment, open files) is in that memory. The program can change all of this module's Python at will. It does not
matter: what binds it is what the kernel holds it to.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import threading
import types
from typing import Any

from bridge_mcore.rewards.box import kernel, syscalls
from bridge_mcore.rewards.box.frames import read_frame, write_frame
from bridge_mcore.rewards.box.root import SCRATCH
from bridge_mcore.rewards.box.values import NotPlain, decode, encode

#: The user that programs run as, if the warden may change it; "nobody" on common systems.
NOBODY = 65534
_MAX_MESSAGE = 64 << 20


def confine(request: dict[str, Any], layers: dict[str, Any]) -> None:
    """Put every limit on this process. Raises OSError if one that the warden promised does not hold."""
    os.setsid()
    memory, output = layers["base_bytes"] + request["memory"], request["output"]
    cpu = int(request["cpu"]) + 2  # the warden's own, finer clock comes first
    limits = {
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: output,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        # In a user namespace this counts the box's own; elsewhere all processes of the user, wherever they are.
        resource.RLIMIT_NPROC: 64 if layers["namespaces"] == "user" else 1024,
        resource.RLIMIT_SIGPENDING: 256,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for what, limit in limits.items():
        _, hard = resource.getrlimit(what)
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (value, value))
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    stack = 64 << 20  # deep recursion; the kernel keeps 128 MiB free below the stack
    resource.setrlimit(resource.RLIMIT_STACK, (stack if hard == resource.RLIM_INFINITY else min(stack, hard), hard))
    os.nice(5)
    if layers["user"] == "nobody":
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    kernel.drop_capabilities(layers["machine"])
    kernel.hide_memory()
    kernel.forbid_new_privileges()
    if layers["landlock"]:
        writable = [SCRATCH] if layers["namespaces"] != "none" else []
        kernel.landlock(layers["landlock"], layers["readable"], writable, layers["devices"])
    if layers["seccomp"]:
        syscalls.restrict()


def _stream(fd: int, mode: str, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(os.fdopen(fd, mode, closefd=False), "utf-8", errors, line_buffering=fd == 2)


def _fresh_interpreter() -> dict[str, Any]:
    """New standard streams and a new, empty ``__main__``, as a program started by itself would have them."""
    for number in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    sys.stdin = sys.__stdin__ = _stream(0, "rb", "surrogateescape")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, "wb", "surrogateescape")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, "wb", "backslashreplace")  # type: ignore[misc]
    sys.argv = ["program.py"]
    random.seed(0)
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    return main.__dict__


def describe(error: BaseException) -> str:
    """Type and text of an exception on one short line; never raises, whatever the exception's ``__str__`` does."""
    try:
        text = " ".join(str(error).split())[:200]
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def run(request: dict[str, Any]) -> int:
    """Run a request of mode stdin, call, serve or check; the exit status: 0, or 1 with a last line on stderr."""
    names = _fresh_interpreter()
    try:
        with contextlib.suppress(SystemExit):  # leaving early, with whatever status, is an ordinary end
            if request["mode"] == "stdin":
                _execute(request["program"], "program.py", names)
            elif request["mode"] == "call":
                _call(request, names)
            elif request["mode"] == "serve":
                _serve(request, names)
            else:
                _check(request, names)
        # What the interpreter does at its end: waits for threads, runs exit functions, writes what is buffered.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        return 0
    except BaseException as error:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            os.write(2, f"\n{describe(error)}".encode(errors="replace"))
        return 1


def _execute(source: str, name: str, names: dict[str, Any]) -> None:
    exec(compile(source, name, "exec", dont_inherit=True), names)  # this module's __future__ is not the program's


def _entry_point(names: dict[str, Any], wanted: str) -> Any:
    """The function of a program that is tested: by name, or as a method of LeetCode's class Solution."""
    if wanted in names:
        return names[wanted]
    if "Solution" in names and hasattr(names["Solution"], wanted):
        return getattr(names["Solution"](), wanted)
    raise NameError(f"there is no function {wanted}")


def _prelude(request: dict[str, Any], names: dict[str, Any]) -> None:
    """What the question gave (imports, helpers): an answer may leave it out, and tests may use it."""
    with contextlib.suppress(Exception):
        _execute(request.get("prelude", ""), "prompt.py", names)


def _call(request: dict[str, Any], names: dict[str, Any]) -> None:
    """Call the function on arguments and write what it returns to descriptor 3, as JSON."""
    _prelude(request, names)
    _execute(request["program"], "program.py", names)
    value = _entry_point(names, request["entry_point"])(*request["args"])
    data = memoryview(json.dumps(value).encode("ascii"))
    while data:
        data = data[os.write(3, data) :]


def _serve(request: dict[str, Any], names: dict[str, Any]) -> None:
    """Load the program, then answer calls of its functions: requests on descriptor 3, answers on 4."""
    requests, answers = 3, 4
    _prelude(request, names)
    try:
        _execute(request["program"], "program.py", names)
        for name in request["names"][:1]:
            _entry_point(names, name)
    except BaseException as error:
        write_frame(answers, {"failed": describe(error)})
        raise
    write_frame(answers, {"ready": True})
    held: list[Any] = []
    while True:
        try:
            message = read_frame(requests)
        except EOFError:
            return
        try:
            arguments, keywords = decode(message["args"], held), decode(message["kwargs"], held)
            answer = {"value": encode(_entry_point(names, message["name"])(*arguments, **keywords), held)}
        except BaseException as error:
            answer = {"raised": [type(error).__name__, describe(error)]}
        write_frame(answers, answer)


_SILENT = (StopIteration, StopAsyncIteration)


class _Gone(BaseException):
    """The tested program ended or broke the protocol; not to be caught by a test's `except Exception`."""


class _Remote:
    """A function of the tested program, seen from the process that checks it."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        call = {"name": self.__name__, "args": encode(arguments), "kwargs": encode(keywords)}
        try:
            write_frame(4, call)
            answer = read_frame(3, _MAX_MESSAGE)
            if "value" in answer:
                return decode(answer["value"])
            kind, text = answer["raised"]
            text = str(text)[:300]
        except (EOFError, OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise _Gone("the program ended" if isinstance(error, (EOFError, OSError)) else describe(error)) from None
        known = getattr(builtins, str(kind), None)
        # Not StopIteration: in a test's `all(map(…))` it would silently skip the rest.
        if isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, _SILENT):
            try:
                error_raised = known(text)
            except TypeError:  # UnicodeDecodeError and its like want more arguments
                error_raised = RuntimeError(text)
            raise error_raised
        raise RuntimeError(text)


def _check(request: dict[str, Any], names: dict[str, Any]) -> None:
    """Run a test's source on the program's functions; the result goes to descriptor 5.

    The source comes on descriptor 6. Neither is open in the program's process, and the source was never in the memory
    that this process and the program's were forked from.
    """
    with open(6, encoding="ascii") as hidden:
        request = {**request, **json.load(hidden)}
    remotes = {name: _Remote(name) for name in request["names"]}
    result: dict[str, Any]
    try:
        first = read_frame(3, _MAX_MESSAGE)
        if "failed" in first:
            raise _Gone(str(first["failed"])[:300])
        _prelude(request, names)
        names.update(remotes)
        before = names.get("check")
        _execute(request["test"], "test.py", names)
        if (check := names.get("check")) is not before and callable(check):
            check(remotes[request["names"][0]])
        result = {"passed": True}
    except _Gone as error:
        result = {"passed": False, "why": str(error)[:200]}
    except AssertionError as error:
        result = {"passed": False, "why": "wrong output" + (f" ({text})" if (text := str(error)[:80]) else "")}
    except NotPlain as error:
        result = {"passed": False, "why": f"the test passes {error}", "test": True}
    except Exception as error:
        result = {"passed": False, "why": describe(error)}
    os.write(5, json.dumps(result).encode("ascii"))


def end(status: int) -> None:
    """Leave without the interpreter's own clean-up, which the program may have changed."""
    os._exit(status)
