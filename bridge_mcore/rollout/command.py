"""`bridge-mcore generate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bridge_mcore.config.schema import Parallel
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.texts import check_unicode
from bridge_mcore.errors import ConfigError
from bridge_mcore.monitoring.text import visible
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import process_groups
from bridge_mcore.rollout.embedded import EmbeddedEngine
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.inference import TextSide, load_chunks, read_model
from bridge_mcore.rollout.options import GenerateOptions
from bridge_mcore.rollout.stop_text import cut_at_text, without_stop


def run_generate(options: GenerateOptions) -> None:
    """Print the answers to one prompt on standard output; what is no answer goes to standard error."""
    check_unicode(options.prompt)
    model = read_model(options.model, options.template)
    problem = Problem("prompt", options.prompt, "-", None, "prompt")
    tokens = tuple(model.template.prompt(problem, model.shape.max_positions))
    room = model.shape.max_positions - len(tokens)
    if room < 1:
        raise ConfigError(
            f"the prompt has at least {len(tokens)} tokens, the model's context is {model.shape.max_positions}"
        )
    new, stops = min(options.max_new_tokens, room), model.template.stop_texts
    params = SamplingParams(new, options.temperature, options.top_p, model.stops, options.seed, stop_texts=stops)
    requests = [Request(i, tokens) for i in range(options.samples)]
    with redirect_stdout(sys.stderr):
        answers = _answers(options, model, requests, params)
    for number, answer in enumerate(answers, 1):
        if options.samples > 1:
            print(f"--- {number} of {options.samples}")
        answer = cut_at_text(answer, stops, model.decode)
        text = without_stop(model.decode(answer.tokens), stops)
        print(visible(text) if sys.stdout.isatty() else text, flush=True)
        if not answer.finished:
            print(f"(cut at {len(answer.tokens)} tokens)", file=sys.stderr)


def _answers(
    options: GenerateOptions, model: TextSide, requests: Sequence[Request], params: SamplingParams
) -> list[Rollout]:
    """One for each request, in one process: fp32 on CPU, else bf16."""
    platform = setup_device(options.device)
    dtype = torch.float32 if platform.kind == "cpu" else torch.bfloat16
    with process_groups(platform, Parallel(), seed=0):
        if options.engine == "embedded":
            chunks = load_chunks(options.model, options.adapter, Parallel(), dtype, platform.device)
            return EmbeddedEngine(chunks, decode=model.decode).generate(requests, params)
        from bridge_mcore.rollout.remote.fixed import serve

        context, name = len(requests[0].prompt) + params.max_new_tokens, str(dtype).removeprefix("torch.")
        with (
            TemporaryDirectory(prefix="bridge-mcore-") as logs,
            serve(
                options.model, options.engine, options.servers, platform, name, context, model.shape.vocab_size,
                params, Path(logs), model.decode,
            ) as engine,
        ):  # fmt: skip
            found = {r.key: r for block in engine.stream(requests, params) for r in block}
    return [found[request.key] for request in requests]
