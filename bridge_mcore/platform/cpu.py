"""Run megatron-core 0.16.1 on a machine without CUDA (gloo).

`install` changes none of Megatron's logic. It answers the few `torch.cuda` questions that Megatron asks
unconditionally, gives its "CUDA" RNG tracker the CPU generator, swaps the literals ``'cuda'`` and
``'torch.cuda.*Tensor'`` in a closed table of functions, and mends a few upstream gaps that show without Transformer
Engine and apex. It is only called when the CPU is the chosen device. A Megatron that it was not checked with is
refused, and so is a table entry that matches nothing: a silent no-op here would be a wrong result later.
"""

from __future__ import annotations

import importlib
import logging
import types
from collections.abc import Callable
from typing import Any

import torch

from bridge_mcore.errors import BridgeError

CHECKED_VERSIONS = ("0.16.1",)

#: module -> functions whose code constants name the CUDA device or tensor types
_LITERALS = {
    "megatron.core.pipeline_parallel.schedules": [
        "forward_backward_no_pipelining",
        "forward_backward_pipelining_with_interleaving",
        "forward_backward_pipelining_without_interleaving",
    ],
    "megatron.core.transformer.utils": ["get_default_causal_mask", "get_sliding_window_causal_mask"],
    "megatron.core.utils": ["local_multi_tensor_l2_norm"],
    "megatron.core.optimizer.clip_grads": [
        "get_grad_norm_fp32",
        "clip_grad_by_total_norm_fp32",
        "count_zeros_fp32",
    ],
    "megatron.core.optimizer.optimizer": [
        "MixedPrecisionOptimizer.__init__",
        "Float16OptimizerWithFloat16Params.__init__",
        "FP32Optimizer.__init__",
    ],
    "megatron.core.optimizer.distrib_optimizer": [
        "DistributedOptimizer._build_model_and_main_param_groups",
        "DistributedOptimizer.__init__",
    ],
    "megatron.core.transformer.moe.moe_utils": ["track_moe_metrics"],
    "megatron.core.dist_checkpointing.exchange_utils": [
        "_get_empty_tensor_for_exchange",
        "exchange_loaded_tensors_gather_rounds",
    ],
    "megatron.core.dist_checkpointing.strategies.state_dict_saver": ["verify_global_md_reuse"],
}
#: functions that pin host memory: every constant True in them becomes False
_PINNED = {"megatron.core.models.common.embeddings.rope_utils": ["get_pos_emb_on_this_cp_rank"]}

_applied: list[str] = []


def _swap_constant(constant: Any) -> Any:
    if isinstance(constant, str):
        if constant == "cuda":
            return "cpu"
        if constant.startswith("torch.cuda.") and constant.endswith("Tensor"):
            return constant.replace("torch.cuda.", "torch.")
        return constant
    if isinstance(constant, tuple):
        return tuple(_swap_constant(item) for item in constant)
    if isinstance(constant, types.CodeType):
        return _swap_literals(constant)
    return constant


def _swap_literals(code: types.CodeType) -> types.CodeType:
    constants = tuple(_swap_constant(constant) for constant in code.co_consts)
    return code if constants == code.co_consts else code.replace(co_consts=constants)


def _unpin(code: types.CodeType) -> types.CodeType:
    if True not in code.co_consts:
        return code
    return code.replace(co_consts=tuple(False if c is True else c for c in code.co_consts))


def _rewrite(module: str, name: str, rewrite: Callable[[types.CodeType], types.CodeType]) -> None:
    target: Any = importlib.import_module(module)
    for part in name.split("."):
        target = target.__dict__[part] if isinstance(target, type) else getattr(target, part)
    target = getattr(target, "__func__", target)
    while hasattr(target, "__wrapped__"):
        target = target.__wrapped__
    code = rewrite(target.__code__)
    if code is target.__code__:
        raise BridgeError(
            f"CPU platform: nothing to change in {module}.{name}; this megatron-core is not the one checked"
        )
    target.__code__ = code
    _applied.append(f"{module}.{name}")


def _set(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)
    _applied.append(f"{getattr(owner, '__name__', owner)}.{name}")


def _get_rng_state(device: Any = "cpu", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
    torch.set_rng_state(new_state)


def _dispatcher_sync(self: Any, point: str, tokens_per_expert: Any = None) -> Any:
    """MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize where there is no device to copy from or wait for."""
    if not self.drop_and_pad and point == self.cuda_dtoh_point:
        for name in ("input_splits", "output_splits", "output_splits_tp"):
            value = getattr(self, name)
            if torch.is_tensor(value):
                setattr(self, name, value.numpy())
    return tokens_per_expert


def _mend_distributed_optimizer() -> None:
    """Upstream gaps of DistributedOptimizer with torch's AdamW (no apex or TE; not specific to CPU):
    a fresh optimizer cannot be loaded into (distrib_optimizer.py:642), the per-parameter `step` is missing from the
    fully reshardable format (:940), and one `step` tensor is shared by all parameters after loading (:821)."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    sharded_state_dict = DistributedOptimizer.sharded_state_dict
    set_states = DistributedOptimizer._set_main_param_and_optimizer_states

    def sharded(self: Any, model_sharded_state_dict: Any, is_loading: bool = False, *args: Any, **kwargs: Any) -> Any:
        if is_loading and self.optimizer is not None:
            for group in self.optimizer.param_groups:
                for p in group["params"]:
                    if not self.optimizer.state[p]:
                        zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                        self.optimizer.state[p].update(step=torch.tensor(0.0), **zeros)
        return sharded_state_dict(self, model_sharded_state_dict, is_loading, *args, **kwargs)

    def set_own_step(self: Any, model_param: Any, tensors: dict[str, Any]) -> Any:
        group, index = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][index]]
        if "step" in state and "step" not in tensors:
            state["step"] = state["step"].clone()
            tensors = {**tensors, "step": state["step"]}
        return set_states(self, model_param, tensors)

    _set(DistributedOptimizer, "sharded_state_dict", sharded)
    _set(DistributedOptimizer, "_set_main_param_and_optimizer_states", set_own_step)


class _ExpectedRngChange(logging.Filter):
    """The tracker's fork() warns when the CPU generator moved inside it, which is the point here."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "CPU RNG state changed" not in record.getMessage()


def install() -> list[str]:
    """Make megatron-core run on CPU in this process; idempotent. Call it before any Megatron model is built.

    Returns the list of what was changed. Raises BridgeError for a megatron-core other than `CHECKED_VERSIONS`.
    """
    if _applied:
        return _applied
    import megatron.core

    if megatron.core.__version__ not in CHECKED_VERSIONS:
        raise BridgeError(
            f"megatron-core {megatron.core.__version__} is installed, but the CPU platform was checked with "
            f"{', '.join(CHECKED_VERSIONS)}: pip install megatron-core=={CHECKED_VERSIONS[-1]}"
        )
    # Megatron's jit_fuser is torch.compile: around its small fused functions it buys nothing on CPU and needs a C++
    # compiler that a fresh machine may lack.
    torch.compiler.set_stance("force_eager")
    device = torch.device("cpu")
    _set(torch.cuda, "current_device", lambda: device)
    _set(torch.cuda, "synchronize", lambda device=None: None)
    _set(torch.cuda, "get_rng_state", _get_rng_state)
    _set(torch.cuda, "manual_seed", lambda seed: None)  # Megatron seeds the CPU generator beside it
    _set(torch.Tensor, "cuda", lambda self, *args, **kwargs: self)
    import megatron.core.tensor_parallel.random as mcore_random

    _set(mcore_random, "_get_cuda_rng_state", _get_rng_state)
    _set(mcore_random, "_set_cuda_rng_state", _set_rng_state)
    logging.getLogger(mcore_random.__name__).addFilter(_ExpectedRngChange())
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    _set(MoEAlltoAllTokenDispatcher, "cuda_dtoh_stream", "none on CPU")
    _set(MoEAlltoAllTokenDispatcher, "_maybe_dtoh_and_synchronize", _dispatcher_sync)
    import megatron.core.transformer.moe.moe_utils as moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):  # upstream: NameError at moe_utils.py:1192 without TE
        _set(moe_utils, "te_general_gemm", None)
    for module, names in _LITERALS.items():
        for name in names:
            _rewrite(module, name, _swap_literals)
    for module, names in _PINNED.items():
        for name in names:
            _rewrite(module, name, _unpin)
    _mend_distributed_optimizer()
    return _applied
