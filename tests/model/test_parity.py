"""Megatron's logits and log-probabilities against transformers, fp32."""

from __future__ import annotations

import pytest
import torch

from tests.models import KINDS, MOE, random_tokens, save_tiny
from tests.reference.algorithm2 import per_expert


def build(world, directory):
    from bridge_mcore.checkpoint.hf import load_theta
    from bridge_mcore.config.schema import Parallel
    from bridge_mcore.model.families import find_family
    from bridge_mcore.model.gpt import build_chunks

    family, shape = find_family(directory)
    [model] = build_chunks(shape, Parallel(), torch.float32, world[0].device, logprob_chunk=7)
    load_theta([model], directory, family, shape)
    return model.eval()


@pytest.mark.parametrize("kind", [*KINDS, MOE])
def test_logits_and_logprobs_equal_transformers(world, tmp_path, seed, kind):
    hf = save_tiny(kind, tmp_path, seed=seed % 1000)
    model = build(world, tmp_path)
    tokens = random_tokens(hf, (3, 140), seed)
    with torch.no_grad():
        want = hf(tokens).logits
        got = model(tokens)
        assert (got - want[:, -1]).abs().max() < 1e-5
        mask = torch.rand(3, 139) < 0.7
        out = model(tokens[:, :-1], labels=tokens[:, 1:], mask=mask)
    logp = want[:, :-1].log_softmax(-1)
    target = logp.gather(-1, tokens[:, 1:, None])[..., 0]
    entropy = -(logp.exp() * logp).sum(-1)
    assert (out[0] - target)[mask].abs().max() < 1e-5
    assert (out[1] - entropy)[mask].abs().max() < 1e-5
    assert (out[:, ~mask] == 0).all()


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", MOE, "mistral_window", "gemma3", "olmo2"])
def test_gradients_equal_transformers(world, tmp_path, seed, kind):
    """Weighted, tempered log-probabilities: gradients of every HF tensor within 1e-5 of their largest entry."""
    from bridge_mcore.checkpoint.hf import base_parameters
    from bridge_mcore.model.families import find_family

    hf = save_tiny(kind, tmp_path, seed=seed % 1000)
    model = build(world, tmp_path)
    g = torch.Generator().manual_seed(seed)
    tokens = random_tokens(hf, (2, 20), seed)
    weight, inverse = torch.randn(2, 19, generator=g), torch.rand(2, 19, generator=g) + 0.5
    (model(tokens[:, :-1], labels=tokens[:, 1:], inverse_temperature=inverse)[0] * weight).sum().backward()
    logp = (hf(tokens).logits[:, :-1] * inverse[..., None]).log_softmax(-1)
    (logp.gather(-1, tokens[:, 1:, None])[..., 0] * weight).sum().backward()
    want = per_expert({n: p.grad for n, p in hf.named_parameters()})
    family, shape = find_family(tmp_path)
    mine = base_parameters([model])
    for mapping in family.mappings(shape):
        for name, part in zip(mapping.hf, mapping.split(mine[mapping.mcore].grad, shape), strict=True):
            assert (part - want[name]).abs().max() <= 1e-5 * want[name].abs().max() + 1e-7, name
