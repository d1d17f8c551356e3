"""Which weights sampled which token: across an update in flight, and for θ̂'s own rollouts (a real SGLang server)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from bridge_mcore.config.schema import Config
from bridge_mcore.errors import TrainingError
from bridge_mcore.methods.base import THETA, THETA_HAT
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.remote.build import EngineRoom
from bridge_mcore.rollout.remote.engine import RemoteEngine
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import Policy, build_policy
from tests.models import save_tiny
from tests.support.servers import real_server

TOLERANCE = 1e-5
CONTEXT, LONG = 500, 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_tiny("qwen2", directory)
    return directory


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with real_server(model, tmp_path_factory.mktemp("server"), context=512) as running:
        yield running.url


@pytest.fixture
def parts(world: Any, model: Path, server: str, tmp_path: Path) -> Iterator[tuple[Policy, RemoteEngine]]:
    """A policy with θ̂, and an engine at the server."""
    platform, layout = world
    config = Config.model_validate(
        {
            "run": {"directory": tmp_path}, "model": {"path": model},
            "rollout": {"engine": "sglang", "schedule": "partial"},
            "servers": {"mode": "external", "urls": [server]}, "sync": {"method": "tensor"}, "training": {"steps": 9},
        }
    )  # fmt: skip
    policy = build_policy(config, platform, model, adapter=True, auxiliary=True, reference=False)
    runner = PassRunner(policy, config.objective, 1024)
    room = EngineRoom(config, platform, layout, model, policy.shape, policy.lora, CONTEXT)
    try:
        yield policy, room.open(policy.live_source(), runner.score_prompts)[0]
    finally:
        room.close()


def change(policy: Policy, factor: float) -> None:
    """Other values of θ, live and as masters (fp32: they are the same)."""
    with torch.no_grad():
        for chunk in policy.chunks:
            for p in chunk.parameters():
                p.mul_(factor)
    policy.changes[THETA] += 1


def logprobs(directory: Path, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
    """Of a rollout's tokens, by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*rollout.prompt, *rollout.tokens]])).logits[0, len(rollout.prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(rollout.tokens)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_restricts_sampling_does_not_renormalise(
    parts: tuple[Policy, RemoteEngine], tmp_path: Path, temperature: float
) -> None:
    """top-p and top-k: the reported log-probabilities are the whole distribution's at that temperature."""
    policy, engine = parts
    engine.refresh(1)
    policy.export_theta(tmp_path / "theta")
    params = SamplingParams(40, temperature, top_p=0.8, top_k=5)
    for rollout in engine.generate([Request(i, (5, 6, 7 + i)) for i in range(3)], params):
        found = torch.from_numpy(np.array(rollout.logprobs))
        assert (found - logprobs(tmp_path / "theta", rollout, temperature)).abs().max() <= TOLERANCE


def test_each_token_is_of_the_weights_it_says(parts: tuple[Policy, RemoteEngine], tmp_path: Path) -> None:
    """Pause, sync, continue: what was sampled before has the old weights' log-probabilities, what follows the new."""
    policy, engine = parts
    crossed = 0
    # How far the server has come after some seconds depends on the machine: until an answer crosses the update.
    for attempt, seconds in enumerate((1.2, 2.0, 0.7, 3.0, 1.6)):
        crossed += interrupted(policy, engine, tmp_path, attempt, seconds)
        if crossed:
            break
    assert crossed, "no answer crossed an update"


def interrupted(policy: Policy, engine: RemoteEngine, directory: Path, attempt: int, seconds: float) -> int:
    """Update the weights while four long answers are under way; how many of them crossed the update."""
    first = 2 * attempt + 1
    engine.refresh(first)
    policy.export_theta(directory / str(first))
    keys = range(10 * attempt, 10 * attempt + 4)
    engine.submit([Request(key, (3 + key, 5, 7)) for key in keys], SamplingParams(LONG))
    time.sleep(seconds)
    change(policy, 1.02)
    engine.refresh(first + 1)
    policy.export_theta(directory / str(first + 1))
    rollouts = engine.collect(lambda done: set(keys) <= done.keys(), lambda done: sorted(done), first + 1)
    assert [r.key for r in rollouts] == list(keys)
    crossed = 0
    for rollout in rollouts:
        assert sum(n for _, n in rollout.spans) == len(rollout.tokens) == LONG
        versions = [v for v, _ in rollout.spans]
        assert versions in ([first], [first, first + 1], [first + 1]) and rollout.version == versions[0]
        crossed += len(versions) == 2
        start = 0
        for version, count in rollout.spans:
            span = slice(start, start + count)
            found = torch.from_numpy(np.array(rollout.logprobs))[span]
            expected = logprobs(directory / str(version), rollout)[span]
            assert (found - expected).abs().max() <= TOLERANCE
            other = logprobs(directory / str(2 * first + 1 - version), rollout)[span]
            assert (found - other).abs().max() > 100 * TOLERANCE, "the two versions cannot be told apart"
            start += count
    return crossed


def test_theta_hats_own_rollouts(parts: tuple[Policy, RemoteEngine], tmp_path: Path) -> None:
    """θ and θ̂ take turns on one server; each answers from its own weights, and θ is live afterwards."""
    policy, engine = parts
    change(policy, 0.97)
    policy.export_theta(tmp_path / "theta")
    policy.export_theta(tmp_path / "hat", THETA_HAT)
    params = SamplingParams(12)
    engine.refresh(1)
    (first,) = engine.generate([Request(1, (9, 8, 7))], params)
    with policy.live(THETA_HAT):
        engine.refresh(1, THETA_HAT)
        (own,) = engine.generate([Request(2, (9, 8, 7))], params)
    assert engine.refresh(1) != {}, "θ must be sent again"
    (last,) = engine.generate([Request(3, (9, 8, 7))], params)
    for rollout, name in ((first, "theta"), (own, "hat"), (last, "theta")):
        found = torch.from_numpy(np.array(rollout.logprobs))
        assert (found - logprobs(tmp_path / name, rollout)).abs().max() <= TOLERANCE
        other = "hat" if name == "theta" else "theta"
        assert (found - logprobs(tmp_path / other, rollout)).abs().max() > 100 * TOLERANCE


def test_weights_that_did_not_arrive_are_found(
    parts: tuple[Policy, RemoteEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket whose bytes change on the way (sglang issue 14178's kind): the checksum names the tensor; the probe says
    so where there is no checksum."""
    _, engine = parts
    load = engine.dialect.shared_payload
    corrupt = {"on": True}

    def corrupted(bucket: torch.Tensor, entries: Any, ranks: int) -> Any:
        if corrupt["on"]:
            entry = next(e for e in entries if e.name == "model.layers.1.mlp.down_proj.weight")
            bucket[entry.start : entry.end].view(torch.float32).mul_(-1)
        return load(bucket, entries, ranks)

    monkeypatch.setattr(engine.dialect, "shared_payload", corrupted)
    with pytest.raises(TrainingError, match=r"holds other weights than were sent: model\.layers\.1\.mlp\.down_proj"):
        engine.refresh(1)
    engine.delivery.settings = engine.delivery.settings.model_copy(update={"check": "probe"})
    engine.version = -1
    with pytest.raises(TrainingError, match="log-probabilities of a probe differ"):
        engine.refresh(1)
    corrupt["on"] = False
    engine.version = -1
    assert engine.refresh(1)["sync_probe_gap"] <= TOLERANCE


def test_a_server_that_rests_gives_memory_and_takes_it_back(
    parts: tuple[Policy, RemoteEngine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Colocated servers, as far as a CPU shows: SGLang takes the calls, in order, and answers rightly."""
    policy, engine = parts
    engine.colocated = True
    asked: list[str] = []
    for name in ("release_memory", "take_memory", "begin"):
        method = getattr(engine.dialect, name)

        def noted(*args: Any, method: Any = method, name: str = name) -> Any:
            asked.append(name)
            return method(*args)

        monkeypatch.setattr(engine.dialect, name, noted)
    engine.refresh(1)
    assert "seconds_release" in engine.rest() and engine.rest() == {}, "it rests already"
    change(policy, 1.01)
    engine.refresh(2)
    assert asked == ["begin", "release_memory", "take_memory", "begin"]
    policy.export_theta(tmp_path / "theta")
    (rollout,) = engine.generate([Request(1, (4, 5))], SamplingParams(9))
    found = torch.from_numpy(np.array(rollout.logprobs))
    assert (found - logprobs(tmp_path / "theta", rollout)).abs().max() <= TOLERANCE


def test_a_token_outside_the_vocabulary_is_refused_here(parts: tuple[Policy, RemoteEngine]) -> None:
    """The real server dies of one."""
    _, engine = parts
    with pytest.raises(TrainingError, match="not in the vocabulary of 120"):
        engine.submit([Request(1, (3, 120))], SamplingParams(4))
    with pytest.raises(TrainingError, match="do not fit the servers' context of 500"):
        engine.submit([Request(1, (3,) * 200)], SamplingParams(301))
