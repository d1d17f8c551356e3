"""What is exported answers in transformers and peft as it did in training; what does not fit is refused by name."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models import KINDS, save_tiny


def make_policy(world, source, seed: int, targets: list[str] | None = None):
    from bridge_mcore.config.schema import Adapter, Config
    from bridge_mcore.training.policy import build_policy

    config = Config(
        adapter=Adapter(rank=5, alpha=20, targets=targets or ["linear_qkv", "o_proj", "linear_fc1", "down_proj"])
    )
    config.run.seed = seed
    policy = build_policy(config, world[0], source, adapter=True, auxiliary=False, reference=False)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.chunks[0].named_parameters():
            if ".lora.B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)
    return policy


def logits_of(policy, tokens):
    with torch.no_grad():
        policy.chunks[0].eval()
        return policy.chunks[0](tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_exports_give_the_trained_models_logits(world, tmp_path, seed, kind):
    from bridge_mcore.checkpoint.peft import write_adapter

    save_tiny(kind, tmp_path / "base", seed=seed % 1000)
    policy = make_policy(world, tmp_path / "base", seed % 1000)
    tokens = torch.randint(0, 120, (2, 30), generator=torch.Generator().manual_seed(seed))
    want = logits_of(policy, tokens)
    policy.export_merged(tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").float().eval()
    policy.export_theta(tmp_path / "theta")
    write_adapter(tmp_path / "adapter", policy.adapter_tensors(), policy.lora, "../theta")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theta").float().eval()
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert (merged(tokens).logits[:, -1] - want).abs().max() < 2e-5
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").float().eval()
        assert (plain(tokens).logits[:, -1] - want).abs().max() > 1e-2  # the adapter does something
        assert (adapted(tokens).logits[:, -1] - want).abs().max() < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_theta_goes_out_as_it_came_in(world, tmp_path, seed, kind):
    """Round trip HF -> Megatron -> HF is bit-identical."""
    save_tiny(kind, tmp_path / "base", seed=seed % 1000)
    make_policy(world, tmp_path / "base", 1).export_theta(tmp_path / "out")
    ours, theirs = (load_file(tmp_path / d / "model.safetensors") for d in ("out", "base"))
    theirs.pop("lm_head.weight", None) if "lm_head.weight" not in ours else None
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_an_adapter_of_some_projections_only(world, tmp_path, seed):
    """q and v alone (peft's own default): B = 0 starts as the base model, and the file has only those names."""
    from bridge_mcore.checkpoint.peft import write_adapter

    save_tiny("llama", tmp_path / "base")
    policy = make_policy(world, tmp_path / "base", seed % 1000, ["q_proj", "v_proj"])
    write_adapter(tmp_path / "adapter", policy.adapter_tensors(), policy.lora, "base")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {n.split(".")[-3] for n in names} == {"q_proj", "v_proj"}
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").float()
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = torch.randint(0, 120, (2, 9))
    with torch.no_grad():
        assert (adapted(tokens).logits[:, -1] - logits_of(policy, tokens)).abs().max() < 2e-5


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


GEMMA_YARN = {
    "full_attention": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act"),
        ("qwen2", {"num_attention_heads": 0}, "num_attention_heads=0"),
        ("qwen2", {"num_attention_heads": "4"}, "num_attention_heads"),
        ("qwen2", {"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ("qwen2", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 cannot be"),
        ("qwen2", {"hidden_size": None}, "hidden_size|sensible"),
        ("qwen2", {"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0"),
        ("qwen2", {"rope_theta": "a lot", "rope_parameters": None}, "a lot"),
        ("qwen2", {"tie_word_embeddings": "perhaps"}, "tie_word_embeddings"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "dynamic"),
        ("qwen3", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ("qwen3", {"logit_softcapping": 30.0}, "logit_softcapping"),
        ("qwen3", {"architectures": ["Qwen3MoeForCausalLM"]}, "Qwen3MoeForCausalLM"),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0"),
        ("mistral", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ("mistral", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"attention_bias": True}, "attention_bias"),
        ("gemma3", {"hidden_activation": "silu"}, "hidden_activation"),
        ("gemma3", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ("gemma3", {"sliding_window": None}, "sliding_window=None"),
        ("gemma3", {"rope_parameters": GEMMA_YARN}, "rope_parameters.full_attention.rope_type='yarn'"),
        ("gemma3", {"architectures": ["Gemma3ForConditionalGeneration"]}, "Gemma3ForConditionalGeneration"),
        ("olmo2", {"attention_bias": True}, "attention_bias"),
        ("olmo2", {"sliding_window": 64}, "sliding_window"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv"),
    ],
)
def test_a_config_that_cannot_be_expressed_is_refused_by_field(tmp_path, kind, changes, named):
    from bridge_mcore.errors import CheckpointError
    from bridge_mcore.model.families import find_family

    save_tiny(kind, tmp_path)
    find_family(tmp_path)  # as it is, it can
    edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=named) as error:
        find_family(tmp_path)
    assert len(str(error.value)) < 800


def test_a_hub_style_config_reads_the_same(tmp_path):
    """Older checkpoints have rope_theta and rope_scaling at the top level; transformers 5 writes rope_parameters."""
    from bridge_mcore.model.families import find_family

    save_tiny("llama_scaled", tmp_path)
    _, new = find_family(tmp_path)
    rope = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters")
    path.write_text(json.dumps({**config, "rope_theta": theta, "rope_scaling": rope, "torch_dtype": "bfloat16"}))
    assert find_family(tmp_path)[1] == new


def test_gemma_as_the_hub_has_it_reads_the_same(tmp_path):
    """Ropes as rope_theta, rope_scaling and rope_local_base_freq, the kinds of layers as sliding_window_pattern."""
    from bridge_mcore.model.families import find_family

    save_tiny("gemma3", tmp_path, layers=5)
    types = [*["sliding_attention"] * 2, "full_attention", *["sliding_attention"] * 2]
    edit_config(tmp_path, layer_types=types)
    new = find_family(tmp_path)[1]
    assert (new.rope.theta, new.rope.factor, new.local_rope.theta) == (1e6, 8.0, 1e4)
    assert new.windows == (6, 6, None, 6, 6)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key in ("rope_parameters", "layer_types", "_sliding_window_pattern", "tie_word_embeddings", "dtype"):
        config.pop(key, None)
    hub = {
        "rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window_pattern": 3, "cache_implementation": "hybrid", "torch_dtype": "bfloat16",
    }  # fmt: skip
    path.write_text(json.dumps({**config, **hub}))
    assert find_family(tmp_path)[1] == new


def damage_truncated(d):
    (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100])


def damage_header(d):
    (d / "model.safetensors").write_bytes(b"\xff" * 200)


def damage_missing(d):
    tensors = load_file(d / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, d / "model.safetensors")


def damage_shape(d):
    tensors = load_file(d / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(3)
    tensors["extra.weight"] = torch.ones(3)
    save_file(tensors, d / "model.safetensors")


def damage_pickle(d):
    (d / "model.safetensors").rename(d / "pytorch_model.bin")


def damage_index(d):
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (d / "model.safetensors.index.json").write_text(json.dumps(index))


def damage_tied_head(d):
    tensors = load_file(d / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, d / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_tied_head, "two different"),
        (damage_truncated, "corrupt or truncated"),
        (damage_header, "corrupt or truncated"),
        (damage_missing, "missing: model.norm.weight"),
        (damage_shape, r"unexpected: extra.weight; misshapen: model.norm.weight: \(3,\)"),
        (damage_pickle, "pickle"),
        (damage_index, "outside its directory"),
    ],
)
def test_a_damaged_checkpoint_is_refused(world, tmp_path, damage, named):
    from bridge_mcore.errors import CheckpointError

    save_tiny("qwen2", tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=named):
        make_policy(world, tmp_path, 0)
