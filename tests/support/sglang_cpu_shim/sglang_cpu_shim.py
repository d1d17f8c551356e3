"""TEST SUPPORT: lets the real SGLang 0.5.23 run on a laptop's or CI machine's CPU. Never install this on a GPU server.

SGLang's wheel imports compiled CUDA packages, but on a CPU without AMX every layer it runs falls back to torch. The
stand-ins of this folder answer those imports, nothing in SGLang is changed:

    sgl_kernel/          the compiled kernel package: one function in torch, every other name raises when called
    sglang_cpu_models/   the model families to load at start
    sglang_cpu_shim.py   this module: what is done before torchvision and sglang are imported
    sglang_cpu_shim.pth  makes each interpreter of the virtual environment import this module

`make engine-sglang` installs them, which means: copies the folder's contents into site-packages of `.venv-sglang`.

This module runs at every interpreter start, so it imports nothing: it leaves finders on `sys.meta_path` that wait for

- torchvision: PyPI's wheel is built for CUDA and its `_C.so` does not load beside a CPU build of torch; the two
  operator schemas which its Python code refers to are declared beforehand;
- sglang: three things that make the server start in half the time, all off with SGLANG_CPU_SHIM_PLAIN=1. Its scheduler
  and detokenizer are forked, not spawned, while that is safe (OMP_NUM_THREADS=1, no other Python thread), so that they
  do not import everything again; only the families of `sglang_cpu_models` are loaded (others still are when a
  checkpoint asks for them); the garbage collector looks less often.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class _Waiter:
    """A finder which finds nothing: it runs an action just before a package is first looked up."""

    def __init__(self, package: str, action: "Callable[[], None]") -> None:
        self._package = package
        self._action = action

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """The import system's question; the answer is always "not here"."""
        if name == self._package:
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            self._action()


def _declare_torchvision_operators() -> None:
    import torch

    for operator in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{operator}", schema)


def _start_faster() -> None:
    import gc
    import multiprocessing
    import os
    import threading

    if os.environ.get("SGLANG_CPU_SHIM_PLAIN") == "1":
        return
    gc.set_threshold(100_000, 20, 100)
    os.environ.setdefault("SGLANG_EXTERNAL_MODEL_PACKAGE", "sglang_cpu_models")
    if os.environ.get("OMP_NUM_THREADS") != "1":
        return
    original = multiprocessing.set_start_method

    def set_start_method(method: str | None, force: bool = False) -> None:
        if method == "spawn" and threading.active_count() == 1:
            method = "fork"
        original(method, force)

    multiprocessing.set_start_method = set_start_method


sys.meta_path.insert(0, _Waiter("torchvision", _declare_torchvision_operators))  # type: ignore[arg-type]
sys.meta_path.insert(0, _Waiter("sglang", _start_faster))  # type: ignore[arg-type]
