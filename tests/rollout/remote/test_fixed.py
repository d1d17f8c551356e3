"""Servers of a checkpoint as it is: the embedded engine's answers, stop texts, one that dies, weights that change."""

from __future__ import annotations

import os
import random
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from bridge_mcore.config.engines import Servers
from bridge_mcore.config.schema import Parallel
from bridge_mcore.data.stops import load_tokenizer
from bridge_mcore.data.tokenizer import task_tokenizer, task_vocabulary
from bridge_mcore.errors import TrainingError
from bridge_mcore.rollout.command import run_generate
from bridge_mcore.rollout.embedded import EmbeddedEngine
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.inference import load_chunks
from bridge_mcore.rollout.options import GenerateOptions
from bridge_mcore.rollout.remote.fixed import serve
from bridge_mcore.rollout.stop_text import cut_at_text
from tests.models import save_tiny
from tests.support.servers import python_of

GREEDY = SamplingParams(24, 0.0, 1.0, (1,))  # 1: <eos>, at which a server with a tokenizer stops anyway


def some_stops(rng: random.Random, answers: list[Rollout], decode) -> tuple[str, ...]:
    """Texts that stand in some answers, begin and end anywhere in a token, and are not there at once."""
    found = []
    for text in sorted({decode(r.tokens) for r in answers}, key=len)[-3:]:
        start = rng.randrange(len(text) // 3, len(text) // 2)
        found.append(text[start : start + rng.randint(2, 5)])
    return tuple(found)


@pytest.mark.parametrize(("name", "kind"), [("sglang", "qwen2"), pytest.param("vllm", "qwen3", marks=pytest.mark.slow)])
def test_a_served_checkpoint_answers_as_the_embedded_engine_does(
    world, tmp_path: Path, seed: int, name: str, kind: str, monkeypatch, capsys
) -> None:
    """Also where texts end answers, which the servers do not go on with; also if one is killed, or its core alone."""
    rng = random.Random(seed)
    vocabulary = len(task_vocabulary())
    save_tiny(kind, tmp_path / "model", seed=seed % 1000, vocab=vocabulary)
    task_tokenizer("running_sums").save_pretrained(tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model", vocabulary)

    def decode(tokens) -> str:
        return tokenizer.decode(list(tokens), skip_special_tokens=True)

    prompts = [tuple(rng.randrange(6, 120) for _ in range(rng.randint(2, 20))) for _ in range(40)]
    requests = [Request(i, prompt) for i, prompt in enumerate(prompts)]
    platform = world[0]
    chunks = load_chunks(tmp_path / "model", None, Parallel(), torch.float32, platform.device)
    whole = EmbeddedEngine(chunks).generate(requests, GREEDY)
    stops = some_stops(rng, whole, decode)
    wanted = {r.key: cut_at_text(r, stops, decode) for r in whole}
    params = replace(GREEDY, stop_texts=stops)
    servers = Servers(python=python_of(name), in_flight=4, max_restarts=1, start_seconds=600)
    with serve(
        tmp_path / "model", name, servers, platform, "float32", 60, vocabulary, params, tmp_path, decode
    ) as engine:
        (server,) = engine.fleet.owned.values()
        found: dict[int, Rollout] = {}
        killed = False
        for rollouts in engine.stream(requests, params):
            assert not found.keys() & {r.key for r in rollouts}, "answered twice"
            found |= {r.key: r for r in rollouts}
            if not killed and server.process is not None:
                killed = True
                for child in psutil.Process(server.process.pid).children(recursive=True):
                    if name == "sglang" or "EngineCore" in child.name():
                        os.kill(child.pid, signal.SIGKILL)
        assert engine.fleet.restarts == 1
        # They stop where we cut, and leave nothing to be cut.
        assert {k: r.tokens for k, r in found.items()} == {k: r.tokens for k, r in wanted.items()}
        assert all(found[k].finished == r.finished for k, r in wanted.items())
        assert sum(len(r.tokens) for r in found.values()) < sum(len(r.tokens) for r in whole)
        for key, rollout in found.items():
            assert abs(rollout.logprobs - wanted[key].logprobs).max() < 1e-4
        # The same keys again: nothing of the first call is left over.
        assert sum(len(block) for block in engine.stream(requests[:5], params)) == 5
        # `bridge-mcore generate` prints what the embedded engine prints.
        monkeypatch.setattr("bridge_mcore.rollout.command.process_groups", lambda *_, **__: nullcontext())
        monkeypatch.setenv("THE_KEY", engine.http.key)
        capsys.readouterr()
        asked = GenerateOptions(tmp_path / "model", "Q:a3b2c1A:", "plain", 30)
        run_generate(asked)
        embedded = capsys.readouterr().out
        there = Servers(mode="external", urls=[server.url], key_environment="THE_KEY")
        run_generate(replace(asked, engine=name, servers=there))
        assert embedded.strip() and capsys.readouterr().out == embedded
        # Somebody gives the server other weights in the middle of an evaluation: under the same name, and another one.
        save_tiny(kind, tmp_path / "other", seed=seed % 1000 + 1, vocab=vocabulary)
        label = engine.labels[server.url]
        engine.http.run(engine.dialect.load_directory(engine.http, server.url, tmp_path / "other", label, 60))
        with pytest.raises(TrainingError, match="has been given other weights since its first answer"):
            list(engine.stream(requests[:5], params))
        engine.http.run(engine.dialect.set_label(engine.http, server.url, "other", 30))
        with pytest.raises(TrainingError, match="came back with other weights"):
            list(engine.stream(requests[:5], params))
    assert server.exit_code() is not None  # it ended with the context
