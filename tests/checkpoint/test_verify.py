"""`--verify` is right when all is right, and sees what is wrong: other bits, and other models with the same bits."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridge_mcore.checkpoint.convert import Options, open_hf, open_megatron, to_hf, to_megatron
from bridge_mcore.checkpoint.verify import compare_logits, compare_tensors, verify_checksums, write_checksums
from bridge_mcore.config.schema import Parallel
from bridge_mcore.errors import CheckpointError
from tests.models import KINDS, MOE, random_tokens, save_tiny


@pytest.mark.parametrize("kind", [*KINDS, MOE])
def test_a_conversion_is_verified(world, tmp_path, seed, kind):
    save_tiny(kind, tmp_path / "hf", seed=seed % 1000, vocab=121)
    hf = open_hf(tmp_path / "hf")
    to_megatron(hf, tmp_path / "m", Parallel(tensor=2, pipeline=2), None, 1, Options())
    megatron = open_megatron(tmp_path / "m")
    assert set(compare_tensors(hf, megatron)) == set(hf.names())
    result = compare_logits(hf, megatron, seed)
    assert result.difference < 1e-5 and 0.1 < result.largest < 100


def test_the_logits_that_are_compared_are_the_models(world, tmp_path, seed):
    """The streamed models, of which the embedding has only a few rows, say what the whole transformers model says."""
    from bridge_mcore.checkpoint.verify import _megatron_hidden, _transformers_hidden

    model = save_tiny("gemma3", tmp_path / "hf", seed=seed % 1000)
    opened = open_hf(tmp_path / "hf")
    tokens = random_tokens(model, (1, 120), seed)[0].unique()[:20]
    order = torch.randperm(len(tokens))
    with torch.no_grad():
        want = model.model(tokens[order][None]).last_hidden_state[0]
        for hidden in (_transformers_hidden, _megatron_hidden):
            assert (hidden(opened, tokens, order) - want).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_is_verified_as_the_cast_model(world, tmp_path, seed, dtype):
    """Rounding is what was asked for: the logits are those of the rounded model, not of the source."""
    from bridge_mcore.checkpoint.verify import as_written

    save_tiny("qwen2", tmp_path / "hf", seed=seed % 1000)
    hf = open_hf(tmp_path / "hf")
    to_megatron(hf, tmp_path / "m", Parallel(), dtype, 1, Options())
    megatron = open_megatron(tmp_path / "m")
    compare_tensors(hf, megatron)
    assert compare_logits(as_written(hf, megatron), megatron, seed).difference < 1e-5
    if dtype == torch.float16:  # 11 bits: its rounding may stay within the tolerance
        return
    with pytest.raises(CheckpointError, match="not the same model"):
        compare_logits(hf, megatron, seed)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"])
def test_one_other_bit_is_seen(tmp_path, name):
    save_tiny("qwen2", tmp_path / "hf")
    model = open_hf(tmp_path / "hf")
    to_megatron(model, tmp_path / "m", Parallel(tensor=2), None, 1, Options())
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    flat = tensors[name].view(-1).view(torch.int32)
    flat[-1] ^= 1
    (tmp_path / "other").mkdir()
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "config.json").write_text((tmp_path / "hf" / "config.json").read_text())
    with pytest.raises(CheckpointError, match=f"what they should be: {re.escape(name)}$"):
        compare_tensors(open_hf(tmp_path / "other"), open_megatron(tmp_path / "m"))


def test_the_same_tensors_under_another_config_are_another_model(world, tmp_path):
    """A rope base that got lost changes no tensor: only the logits tell."""
    save_tiny("llama", tmp_path / "hf")
    model = open_hf(tmp_path / "hf")
    to_megatron(model, tmp_path / "m", Parallel(), None, 1, Options())
    path = tmp_path / "m" / "hf" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["rope_theta"] = 100.0
    path.write_text(json.dumps(config))
    other = open_megatron(tmp_path / "m")
    compare_tensors(model, other)
    with pytest.raises(CheckpointError, match="not the same model"):
        compare_logits(model, other, 0)


def test_weights_that_are_not_finite_are_refused(world, tmp_path):
    save_tiny("llama", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, path)
    model = open_hf(tmp_path / "hf")
    with pytest.raises(CheckpointError, match="not finite"):
        compare_logits(model, model, 0)


def test_checksums_are_left_and_found_again(tmp_path):
    save_tiny("qwen2", tmp_path / "hf")
    model = open_hf(tmp_path / "hf")
    to_hf(model, tmp_path / "out", torch.bfloat16, Options())
    with pytest.raises(CheckpointError, match="--verify"):
        verify_checksums(tmp_path / "out", None)
    write_checksums(tmp_path / "out", compare_tensors(model, open_hf(tmp_path / "out")))
    assert verify_checksums(tmp_path / "out", None) == f"all {len(model.names())} are right"
    weights = tmp_path / "out" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: "):
        verify_checksums(tmp_path / "out", None)
