"""Weights that are used without their module being called."""

from __future__ import annotations

from torch import nn


def run_pre_hooks(module: nn.Module) -> None:
    """Call a module's forward pre-hooks where its weight is used without its forward.

    With overlapped parameter gathering they wait until the weight has arrived.
    """
    for hook in list(module._forward_pre_hooks.values()):
        hook(module, ())
