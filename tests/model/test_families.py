"""Every family against transformers' own class of it: what it computes, what it holds, what its config may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bridge_mcore.config.model_files import directory_sizes
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families import FAMILIES, find_family
from tests.models import random_tokens

#: What a tiny model of each family needs besides sizes: whatever makes it unlike Llama, and its windows short.
TINY: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": 32},
    "Qwen3MoeForCausalLM": {
        "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True,
    },
    "MistralForCausalLM": {"sliding_window": 7},
    "Gemma3ForCausalLM": {
        "hidden_size": 72, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 6,
        "sliding_window_pattern": 2,
    },
    "Olmo2ForCausalLM": {},
}  # fmt: skip


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_family_is_what_transformers_makes_of_it(world, tmp_path, seed, architecture):
    """Copy this test for your family, or add the family to TINY: docs/families.md.

    A random tiny model: log-probabilities of two sequences packed in a row equal those of transformers, every tensor
    comes out as it went in, and a field that nobody knows is refused.
    """
    from bridge_mcore.checkpoint.hf import base_parameters, load_theta, theta_tensors
    from bridge_mcore.config.schema import Parallel
    from bridge_mcore.model.gpt import build_chunks

    sizes = {
        "vocab_size": 120, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1, "pad_token_id": None,
    }  # fmt: skip
    torch.manual_seed(seed % 1000)
    config = transformers.AutoConfig.for_model(FAMILIES[architecture].model_type, **(sizes | TINY[architecture]))
    hf = getattr(transformers, architecture)(config).float().eval()
    with torch.no_grad():
        for parameter in hf.parameters():  # norms and biases start as ones and zeros, which hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    hf.save_pretrained(tmp_path)

    family, shape = find_family(tmp_path)
    [model] = build_chunks(shape, Parallel(), torch.float32, world[0].device)
    load_theta([model], tmp_path, family, shape)
    lengths = [29, 14]
    sequences = [random_tokens(hf, (1, n + 1), seed + n) for n in lengths]
    row, labels = (torch.cat([s[:, cut] for s in sequences], 1) for cut in (slice(None, -1), slice(1, None)))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with torch.no_grad():
        got = model(row, labels=labels, position_ids=positions, attention_mask=torch.tensor(lengths))[0]
        logits = torch.cat([hf(s[:, :-1]).logits for s in sequences], 1)
    assert (got - logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]).abs().max() < 1e-5

    tensors = dict(theta_tensors([model], base_parameters([model]), family, shape))
    saved = load_file(tmp_path / "model.safetensors")
    assert tensors.keys() == saved.keys()
    assert all(torch.equal(tensors[name], saved[name]) for name in saved)

    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "frobnication": 3}))
    with pytest.raises(CheckpointError, match="frobnication=3"):
        find_family(tmp_path)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_family_says_something_about_every_field(architecture):
    """Of transformers' config class; else a field could stand at a default that the trainer does not compute."""
    family = FAMILIES[architecture]
    defaults = transformers.AutoConfig.for_model(family.model_type).to_dict()
    unknown = set(defaults) - family.known_fields()
    assert not unknown, f"{family.name}: read, fix or declare neutral: {', '.join(sorted(unknown))}"
    both = set(family.fixed) & {*family.neutral, *family.reads}
    assert not both, f"{family.name}: fixed, and neutral or read: {', '.join(sorted(both))}"


@pytest.mark.parametrize("architecture", FAMILIES)
def test_sizes_are_known_before_torch_is_there(tmp_path, architecture):
    """The configuration's checks read config.json themselves: what it leaves out is what transformers makes of it."""
    family = FAMILIES[architecture]
    config = transformers.AutoConfig.for_model(family.model_type)
    left_out = ("num_key_value_heads", "head_dim", "tie_word_embeddings")
    written = {key: value for key, value in config.to_dict().items() if key not in left_out}
    (tmp_path / "config.json").write_text(json.dumps({**written, "model_type": family.model_type}))
    sizes = directory_sizes(tmp_path)
    assert sizes.kv_heads == config.num_key_value_heads
    default = config.hidden_size // config.num_attention_heads
    assert (sizes.head_dim or default) == (getattr(config, "head_dim", None) or default)
    assert sizes.tied == config.tie_word_embeddings


def test_the_page_shows_the_file_as_it_is():
    root = Path(__file__).parents[2]
    assert (root / "bridge_mcore/model/families/olmo2.py").read_text() in (root / "docs/families.md").read_text()
    assert all(f"`{architecture}`" in (root / "docs/families.md").read_text() for architecture in FAMILIES)


def test_a_window_is_read_for_the_layers_that_have_it(tmp_path):
    config = transformers.MistralConfig(num_hidden_layers=3, hidden_size=64, intermediate_size=96, vocab_size=120)
    family = FAMILIES["MistralForCausalLM"]
    # transformers takes 4096 where the config says nothing, as it was for Mistral 7B v0.1
    for window, windows in ((None, ()), (9, (9, 9, 9)), ("nothing", (4096, 4096, 4096))):
        fields = {**config.to_dict(), "sliding_window": window}
        if window == "nothing":
            del fields["sliding_window"]
        assert family.read(fields, "config.json").windows == windows


@pytest.mark.parametrize("kind", ["mistral_window", "gemma3"])
def test_a_window_over_everything_builds_no_mask(world, tmp_path, monkeypatch, kind):
    """Windows as long as the sequences cost nothing: attention does what it does without one."""
    from bridge_mcore.model import attention, packed
    from tests.model.test_parity import build
    from tests.models import save_tiny

    save_tiny(kind, tmp_path)
    model = build(world, tmp_path)
    for module in (attention, packed):
        monkeypatch.setattr(module, "visible", lambda *_: pytest.fail("a mask was built"))
    tokens = torch.randint(0, 120, (1, 6))
    whole = model(tokens, labels=tokens)
    parts = model(tokens, labels=tokens, attention_mask=torch.tensor([6]))
    assert (whole - parts).abs().max() < 1e-5


def test_a_classifiers_labels_take_neither_time_nor_memory(tmp_path):
    """transformers makes as many labels as a config says, and nothing of a language model depends on them."""
    transformers.Qwen2Config(architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    wanted = find_family(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_labels": 10**9}))
    assert find_family(tmp_path) == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "../x"}, {"model_type": None}, {"model_type": "llama"}, {"head_dim": 1e308}, {"head_dim": 3},
        {"hidden_size": 64.0}, {"hidden_size": True}, {"vocab_size": "136"}, {"rms_norm_eps": True},
        {"rms_norm_eps": 1e308}, {"tie_word_embeddings": "64"}, {"max_position_embeddings": 0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": True}},
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_named(tmp_path, change):
    transformers.Qwen2Config(architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    find_family(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError) as error:
        find_family(tmp_path)
    message = str(error.value)
    assert "config.json" in message and len(message.splitlines()) == 1
