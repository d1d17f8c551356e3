"""Servers of a checkpoint as it is: the embedded engine's answers, one that dies, weights that change behind us."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import psutil
import pytest
import torch

from bridge_mcore.config.engines import Servers
from bridge_mcore.config.schema import Parallel
from bridge_mcore.errors import TrainingError
from bridge_mcore.rollout.embedded import EmbeddedEngine
from bridge_mcore.rollout.engine import Request, SamplingParams
from bridge_mcore.rollout.inference import load_chunks
from bridge_mcore.rollout.remote.fixed import serve
from tests.models import save_tiny
from tests.support.servers import python_of

GREEDY = SamplingParams(24, 0.0, 1.0, (5,))


def test_a_served_checkpoint_answers_as_the_embedded_engine_does(world, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    save_tiny("qwen2", tmp_path / "model", seed=seed % 1000)
    prompts = [tuple(rng.randrange(6, 120) for _ in range(rng.randint(2, 20))) for _ in range(40)]
    requests = [Request(i, prompt) for i, prompt in enumerate(prompts)]
    platform = world[0]
    chunks = load_chunks(tmp_path / "model", None, Parallel(), torch.float32, platform.device)
    wanted = {r.key: r.tokens for r in EmbeddedEngine(chunks).generate(requests, GREEDY)}
    servers = Servers(python=python_of("sglang"), in_flight=4, max_restarts=1)
    with serve(tmp_path / "model", "sglang", servers, platform, "float32", 60, 120, GREEDY, tmp_path) as engine:
        (server,) = engine.fleet.owned.values()
        found: dict[int, tuple[int, ...]] = {}
        killed = False
        for rollouts in engine.stream(requests, GREEDY):
            assert not found.keys() & {r.key for r in rollouts}, "answered twice"
            found |= {r.key: r.tokens for r in rollouts}
            if not killed and server.process is not None:
                killed = True
                for child in psutil.Process(server.process.pid).children(recursive=True):
                    os.kill(child.pid, signal.SIGKILL)
        assert found == wanted and engine.fleet.restarts == 1
        # The same keys again: nothing of the first call is left over.
        assert sum(len(block) for block in engine.stream(requests[:5], GREEDY)) == 5
        # Somebody gives the server other weights in the middle of an evaluation.
        engine.http.run(engine.dialect.set_label(engine.http, server.url, "other", 30))
        with pytest.raises(TrainingError, match="came back with other weights"):
            list(engine.stream(requests[:5], GREEDY))
    assert server.exit_code() is not None  # it ended with the context
