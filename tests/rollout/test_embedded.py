"""The embedded engine against transformers' generate and the trainer's own forward."""

from __future__ import annotations

import pytest
import torch

from tests.models import KINDS, save_tiny


@pytest.fixture
def engine_of(world, tmp_path):
    from tests.model.test_parity import build

    def make(kind, seed, **options):
        from bridge_mcore.rollout.embedded import EmbeddedEngine

        hf = save_tiny(kind, tmp_path, seed=seed % 1000)
        return hf, EmbeddedEngine([build(world, tmp_path)], **options)

    return make


def prompts_of(seed: int, n: int) -> list[tuple[int, ...]]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 25, (n,), generator=g).tolist()
    return [tuple(torch.randint(0, 120, (k,), generator=g).tolist()) for k in lengths]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_transformers(engine_of, seed, kind):
    """Ragged prompts in one batch, greedy: the same tokens as HF generate gives each prompt alone."""
    from bridge_mcore.rollout.engine import Request, SamplingParams

    hf, engine = engine_of(kind, seed)
    prompts = prompts_of(seed, 6)
    out = engine.generate([Request(i, p) for i, p in enumerate(prompts)], SamplingParams(20, temperature=0.0))
    for p, r in zip(prompts, out, strict=True):
        ids = torch.tensor([p])
        want = hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None
        )
        assert list(r.tokens) == want[0, len(p) :].tolist()
        assert not r.finished


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_agree_with_the_trainers_forward(engine_of, seed, temperature):
    """Sampled, several answers a prompt, stops and compaction: log-probabilities within 1e-4 of a full forward."""
    from bridge_mcore.rollout.engine import Request, SamplingParams

    _, engine = engine_of("qwen3", seed, batch_size=16)
    prompts = [p for p in prompts_of(seed, 6) for _ in range(4)]
    stops = tuple(range(0, 120, 9))
    out = engine.generate(
        [Request(i, p) for i, p in enumerate(prompts)], SamplingParams(30, temperature, stop_token_ids=stops, seed=seed)
    )
    assert len({r.tokens for r in out}) > 6  # answers to one prompt differ
    assert any(r.finished for r in out)
    for r in out:
        ids = torch.tensor([[*r.prompt, *r.tokens]])
        inverse = torch.full(ids[:, 1:].shape, 1 / temperature)
        with torch.no_grad():
            want = engine.chunks[0](ids[:, :-1], labels=ids[:, 1:], inverse_temperature=inverse)[
                0, 0, len(r.prompt) - 1 :
            ]
        assert (want - torch.tensor(r.logprobs)).abs().max() < 1e-4
        assert not set(r.tokens[:-1]) & set(stops)
        assert r.finished == (r.tokens[-1] in stops)
        assert r.finished or len(r.tokens) == 30


def test_an_answer_does_not_depend_on_its_batch(engine_of, seed):
    from bridge_mcore.rollout.engine import Request, SamplingParams

    _, engine = engine_of("qwen2", seed)
    requests = [Request(100 + i, p) for i, p in enumerate(prompts_of(seed, 8))]
    params = SamplingParams(15, stop_token_ids=(3, 40, 80), seed=seed)
    together = engine.generate(requests, params)
    assert [r.tokens for r in engine.generate(requests, params)] == [r.tokens for r in together]
    alone = [engine.generate([r], params)[0] for r in reversed(requests)][::-1]
    assert [r.tokens for r in alone] == [r.tokens for r in together]
    other = engine.generate(requests, SamplingParams(15, stop_token_ids=(3, 40, 80), seed=seed + 1))
    assert [r.tokens for r in other] != [r.tokens for r in together]


def test_a_text_ends_an_answer_at_the_token_that_completes_it(engine_of, seed):
    """Against answers that are generated to their end and cut; texts begin and end within tokens, some are empty."""
    import random

    from bridge_mcore.rollout.engine import Request, SamplingParams
    from bridge_mcore.rollout.stop_text import cut_at_text

    rng = random.Random(seed)
    pieces = ["".join(rng.choices("abc\n", k=rng.choice((0, 1, 1, 2, 3)))) for _ in range(120)]
    texts = ("ab\nc", "\ncba", "aaa")

    def decode(tokens):
        return "".join(pieces[token] for token in tokens)

    _, engine = engine_of("qwen2", seed, batch_size=16, decode=decode)
    requests = [Request(i, p) for i, p in enumerate(p for p in prompts_of(seed, 8) for _ in range(4))]
    whole = engine.generate(requests, SamplingParams(40, stop_token_ids=(3,), seed=seed))
    params = SamplingParams(40, stop_token_ids=(3,), seed=seed, stop_texts=texts)
    streamed = [done for done in engine.stream(requests, params) if done]
    assert sorted(i for done in streamed for i in done) == list(range(len(requests))) and len(streamed) > 4
    found = {i: rollout for done in streamed for i, rollout in done.items()}
    ended = 0
    for i, rollout in enumerate(whole):
        wanted = cut_at_text(rollout, texts, decode)
        ended += len(wanted.tokens) < len(rollout.tokens)
        assert (found[i].key, found[i].tokens, found[i].finished) == (i, wanted.tokens, wanted.finished)
        assert abs(found[i].logprobs - wanted.logprobs).max() < 1e-5
    assert ended > 3


def test_a_sequence_over_the_context_is_refused(engine_of, seed):
    from bridge_mcore.errors import TrainingError
    from bridge_mcore.rollout.engine import Request, SamplingParams

    _, engine = engine_of("qwen2", seed)
    with pytest.raises(TrainingError, match="context of 512"):
        engine.generate([Request(0, (1, 2))], SamplingParams(511))


@pytest.mark.parametrize("top_k", [0, 2, 12])
def test_sampling_follows_the_distribution(seed, top_k):
    """10⁵ draws at temperature 2 and top-p 0.8 (and top-k): frequencies within 5 standard errors, nothing outside."""
    from bridge_mcore.rollout.sampling import sample, uniform

    n = 100_000
    logits = torch.randn(12, generator=torch.Generator().manual_seed(seed)) * 2
    draws = uniform(seed, torch.arange(n), 3)
    assert abs(draws.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    tokens, logprobs = sample(logits.expand(n, -1), draws, 2.0, 0.8, top_k)
    p = (logits / 2).softmax(-1)
    ordered, order = p.sort(descending=True)
    kept = order[: int((ordered.cumsum(0) < 0.8).sum()) + 1][: top_k or None]
    want = torch.zeros(12).index_copy(0, kept, p[kept] / p[kept].sum())
    got = tokens.bincount(minlength=12) / n
    assert ((got - want).abs() <= 5 * (want * (1 - want) / n).sqrt() + 1e-12).all()
    assert torch.allclose(logprobs, p.log()[tokens], atol=1e-6)
