"""Checkpoints with experts: in and out unchanged, however experts are spread; what cannot be expressed is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.checkpoint.test_export import logits_of, make_policy
from tests.models import MOE, random_tokens, save_tiny
from tests.parallel.processes import run_ranks

ATTENTION = ["linear_qkv", "o_proj"]


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """Bit-identical, under the published name of each expert."""
    found: dict[str, torch.Tensor] = {}
    for file in ours.glob("*.safetensors"):
        found |= load_file(file)
    wanted = load_file(theirs / "model.safetensors")
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in wanted
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_one_process_writes_what_it_read(world, tmp_path, seed):
    save_tiny(MOE, tmp_path / "base", seed=seed % 1000)
    make_policy(world, tmp_path / "base", 1, ATTENTION).export_theta(tmp_path / "out")
    assert_same_tensors(tmp_path / "out", tmp_path / "base")


def test_experts_on_two_processes_are_written_as_they_were_read(tmp_path, seed):
    """Experts spread over data-parallel ranks, over tensor-parallel ranks, and per pipeline stage."""
    save_tiny(MOE, tmp_path / "base", seed=seed % 1000)
    layouts = {
        "data": {"expert": 2, "data": 2},
        "data_whole_masters": {"expert": 2, "data": 2, "distributed_optimizer": False},
        "tensor": {"expert": 2, "tensor": 2, "sequence": True},
        "stages": {"pipeline": 2},
    }
    (tmp_path / "layouts.json").write_text(json.dumps(layouts))
    paths = [str(tmp_path / name) for name in ("base", "out", "layouts.json")]
    run_ranks(2, "tests.checkpoint.experts_job", *paths)
    for name in layouts:
        assert_same_tensors(tmp_path / "out" / name, tmp_path / "base")


def test_merged_and_adapter_give_the_trained_models_logits(world, tmp_path, seed):
    """By default every linear that the model has outside of experts carries an adapter; peft reads it back."""
    import peft

    from bridge_mcore.config.schema import LORA_HOSTS

    hf = save_tiny(MOE, tmp_path / "base", seed=seed % 1000)
    policy = make_policy(world, tmp_path / "base", seed % 1000, list(LORA_HOSTS))
    assert policy.lora.projections == ("q_proj", "k_proj", "v_proj", "o_proj")
    policy.export_merged(tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").float().eval()
    tokens = random_tokens(merged, (2, 30), seed)
    want = logits_of(policy, tokens)
    policy.export_adapter(tmp_path / "adapter", "base")
    adapted = peft.PeftModel.from_pretrained(hf, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert (merged(tokens).logits[:, -1] - want).abs().max() < 2e-5
        assert (adapted(tokens).logits[:, -1] - want).abs().max() < 2e-5


@pytest.mark.parametrize(
    "change",
    [
        {"norm_topk_prob": False},
        {"mlp_only_layers": [0]},
        {"decoder_sparse_step": 2},
        {"num_experts_per_tok": 1},
        {"shared_expert_intermediate_size": 64},
        {"output_router_logits": True},
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(tmp_path, change):
    from bridge_mcore.errors import CheckpointError
    from bridge_mcore.model.families import find_family

    save_tiny(MOE, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        find_family(tmp_path)


def test_a_published_config_is_read(tmp_path):
    """Published configs say `num_experts` where transformers 5 writes `num_local_experts`."""
    from bridge_mcore.model.families import find_family

    save_tiny(MOE, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_experts"] = config.pop("num_local_experts")
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = find_family(tmp_path)[1]
    assert (shape.experts, shape.experts_per_token, shape.expert_intermediate_size) == (4, 2, 48)


@pytest.mark.parametrize("targets", [["gate_proj"], ["linear_qkv", "linear_fc2"], ["q_proj", "up_proj"]])
def test_adapters_inside_experts_are_refused(world, tmp_path, targets):
    from bridge_mcore.errors import ConfigError

    save_tiny(MOE, tmp_path)
    with pytest.raises(ConfigError, match=f"{targets[-1]}.*experts"):
        make_policy(world, tmp_path, 1, targets)


def test_a_peft_adapter_inside_experts_is_refused(tmp_path):
    from bridge_mcore.checkpoint.peft import read_adapter_config
    from bridge_mcore.errors import CheckpointError
    from bridge_mcore.model.families import find_family

    save_tiny(MOE, tmp_path)
    adapter = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    shape = find_family(tmp_path)[1]
    with pytest.raises(CheckpointError, match=r"down_proj.*experts"):
        read_adapter_config(tmp_path, shape)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**adapter, "target_modules": "all-linear"}))
    assert read_adapter_config(tmp_path, shape).projections == ("q_proj", "k_proj", "v_proj", "o_proj")
