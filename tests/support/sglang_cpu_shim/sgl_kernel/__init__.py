"""TEST SUPPORT: a stand-in for SGLang's compiled kernel package, for CPUs without AMX (see sglang_cpu_shim.py).

SGLang imports many names from here and calls one of them, which is written in torch below. Every other name, in every
submodule, imports and raises NotImplementedError when it is called.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

__version__ = "0.0.0+cpu.stand.in"
__path__: list[str] = []


class _Missing:
    """A name of the real package that the stand-in lacks."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{self._name}: not in the CPU stand-in for SGLang's kernels")

    def __getattr__(self, name: str) -> "_Missing":
        return _lookup(self._name, name)


def _lookup(owner: str, name: str) -> _Missing:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Missing(f"{owner}.{name}")


def __getattr__(name: str) -> _Missing:
    return _lookup("sgl_kernel", name)


class _Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes every submodule importable, and empty."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.startswith("sgl_kernel."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__getattr__ = lambda name: _lookup(module.__name__, name)  # type: ignore[method-assign]


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Writes each request's new cache slots, which `out_cache_loc` holds one after the other, into its row."""
    taken = 0
    rows = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    for row, start, end in rows:
        slots = out_cache_loc[taken : taken + end - start]
        req_to_token[row, start:end] = slots.to(req_to_token.dtype)
        taken += end - start


def _ignore_pin_memory() -> None:
    """SGLang's LoRA code always asks for pinned memory, which torch refuses where there is no accelerator."""
    if torch.cuda.is_available():
        return

    def without_pin(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def make(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
            return factory(*args, **kwargs)

        make.__wrapped__ = factory  # type: ignore[attr-defined]
        return make

    for name in ("tensor", "empty", "zeros", "ones", "arange", "full"):
        setattr(torch, name, without_pin(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


sys.meta_path.append(_Submodules())
_ignore_pin_memory()
