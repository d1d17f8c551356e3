"""python bridge_entry.py MODULE ARGUMENT …: as `python -m MODULE`, but nobody enters without the run's key.

Runs in the engine's interpreter. The key comes on standard input and stays in this process's memory: it is on no
command line, in no environment and in no log, and processes that the engine starts do not have it. Every application
that uvicorn serves here, with all of its routes, refuses whatever does not bring it; engines' own keys leave some open.
SGLang's router is no uvicorn application: it is given the key as its own.

Processes that the engine spawns import this file too. In each of them a rendezvous store of this host listens on
loopback only; torch's listens on all interfaces.
"""

from __future__ import annotations

import hmac
import importlib.util
import os
import runpy
import socket
import sys
from typing import Any

_ROUTER = "sglang_router.launch_router"


class KeyGuard:
    """ASGI application around another one: what does not bring the key gets 401 (a websocket: is closed).

    open_paths: may be read (GET) without it.
    """

    def __init__(self, app: Any, key: str, open_paths: tuple[str, ...] = ()) -> None:
        self.app, self._open_paths = app, open_paths
        self._expected = f"bearer {key}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket") or self._may_enter(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            body = b'{"error": "Unauthorized"}'
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _may_enter(self, scope: dict[str, Any]) -> bool:
        if scope.get("method") == "GET" and scope["path"] in self._open_paths:
            return True
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        # SGLang's router sends its own beside the one that it was sent.
        return bool(given) and all(self._is_right(value) for value in given)

    def _is_right(self, authorization: bytes) -> bool:
        scheme, _, key = authorization.partition(b" ")
        return hmac.compare_digest(scheme.lower() + b" " + key, self._expected)


def guard_uvicorn(key: str, open_paths: tuple[str, ...]) -> None:
    """Have every uvicorn server of this process demand the key. One that would start processes of its own may not."""
    import uvicorn

    plain = uvicorn.Config.__init__

    def guarded(self: Any, app: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(app, str):
            raise SystemExit("a server of several processes cannot be guarded by the run's key: start one process only")
        # SGLang would ask itself for this, without a key; the trainer asks for it once the server is ready.
        http_server: Any = sys.modules.get("sglang.srt.entrypoints.http_server")
        if http_server is not None:
            http_server._freeze_gc_after_server_warmup = lambda _arguments: None
        plain(self, KeyGuard(app, key, open_paths), *args, **kwargs)

    uvicorn.Config.__init__ = guarded  # type: ignore[method-assign]


def keep_stores_local() -> None:
    """Have torch's rendezvous stores that are for this host listen on loopback only."""
    from torch import distributed

    class LocalStore(distributed.TCPStore):
        def __init__(self, host_name: str, port: int, *args: Any, **kwargs: Any) -> None:
            is_master = kwargs.get("is_master", args[1] if len(args) > 1 else False)
            if is_master and host_name in ("127.0.0.1", "localhost") and kwargs.get("master_listen_fd") is None:
                listening = socket.create_server(("127.0.0.1", port), backlog=1024)
                port = listening.getsockname()[1]
                kwargs["master_listen_fd"] = listening.detach()
            super().__init__(host_name, port, *args, **kwargs)

    # By its name: the package's attribute `rendezvous` is a function.
    for module in (distributed, sys.modules["torch.distributed.rendezvous"]):
        module.TCPStore = LocalStore  # type: ignore[attr-defined]


def read_key() -> tuple[str, tuple[str, ...]]:
    """(key, paths that are open without it) from standard input, which is empty afterwards."""
    key, paths = sys.stdin.readline().strip(), sys.stdin.readline().split()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return key, tuple(paths)


def main(module: str, arguments: list[str]) -> None:
    """Run the module as a program."""
    sys.argv = [module, *arguments]
    key, open_paths = read_key()
    if key:
        if module == _ROUTER:
            sys.argv += ["--api-key", key]  # of this process's memory: the kernel's command line does not change
        else:
            guard_uvicorn(key, open_paths)
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__" and importlib.util.find_spec(sys.argv[1].partition(".")[0]) is None:
    raise SystemExit(f"No module named '{sys.argv[1].partition('.')[0]}' in {sys.executable}")

if sys.argv[1:2] != [_ROUTER]:
    keep_stores_local()

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
