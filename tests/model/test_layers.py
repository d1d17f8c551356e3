"""Transformer Engine's layers need a GPU; that they are put in the right places does not."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from tests.models import save_tiny


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma3", "olmo2"])
def test_transformer_engines_layers_take_the_places_of_ours(world, tmp_path, monkeypatch, kind):
    """With stand-ins of their names (Megatron's own layers) the model computes what it did, adapters included."""
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

    from bridge_mcore.checkpoint.hf import load_theta
    from bridge_mcore.config.schema import Parallel
    from bridge_mcore.model.families import find_family
    from bridge_mcore.model.gpt import build_chunks
    from bridge_mcore.model.lora import LoRAShape, attach_lora
    from bridge_mcore.model.norms import RMSNorm

    class Norm(RMSNorm):
        """Transformer Engine's norm takes 1 + weight from the configuration, not as an argument."""

        def __init__(self, config, hidden_size, eps):
            super().__init__(config, hidden_size, eps, "one_plus" if config.layernorm_zero_centered_gamma else "wide")

    stand_in = types.ModuleType("transformer_engine")
    names = {
        "TEColumnParallelLinear": ColumnParallelLinear,
        "TERowParallelLinear": RowParallelLinear,
        "TENorm": Norm,
    }
    for name, ours in names.items():
        setattr(stand_in, name, type(name, (ours,), {}))
    stand_in.TEFusedMLP = type("TEFusedMLP", (), {})  # Megatron asks what an MLP is by it
    monkeypatch.setitem(sys.modules, "megatron.core.extensions.transformer_engine", stand_in)
    save_tiny(kind, tmp_path)
    family, shape = find_family(tmp_path)
    tokens = torch.randint(0, 120, (1, 9))
    logits = []
    for fused in (False, True):
        chunks = build_chunks(shape, Parallel(), torch.float32, world[0].device, transformer_engine=fused)
        load_theta(chunks, tmp_path, family, shape)
        attach_lora(chunks, LoRAShape(4, 8.0, ("q_proj", "o_proj", "up_proj", "down_proj")), shape, seed=0)
        with torch.no_grad():
            for name, p in chunks[0].named_parameters():
                if ".lora.B." in name:
                    p.fill_(0.05)
            logits.append(chunks[0](tokens))
        used = {type(m).__name__ for m in chunks[0].modules()} & set(names)
        assert used == (set(names) if fused else set())
    assert torch.equal(*logits)
