"""`bridge-mcore generate`."""

from __future__ import annotations

import sys

from bridge_mcore.data.problem import Problem
from bridge_mcore.data.templates import check_unicode
from bridge_mcore.errors import ConfigError
from bridge_mcore.monitoring.text import visible
from bridge_mcore.rollout.engine import Request, SamplingParams
from bridge_mcore.rollout.inference import open_model
from bridge_mcore.rollout.options import GenerateOptions


def run_generate(options: GenerateOptions) -> None:
    """Print the answers to one prompt on standard output; what is no answer goes to standard error."""
    check_unicode(options.prompt)
    with open_model(options.model, options.template, options.device, options.adapter) as model:
        problem = Problem("prompt", options.prompt, "-", None, "prompt")
        tokens = tuple(model.template.prompt(problem, model.shape.max_positions))
        room = model.shape.max_positions - len(tokens)
        if room < 1:
            raise ConfigError(
                f"the prompt has at least {len(tokens)} tokens, the model's context is {model.shape.max_positions}"
            )
        new = min(options.max_new_tokens, room)
        params = SamplingParams(new, options.temperature, options.top_p, model.stops, options.seed)
        answers = model.engine.generate([Request(i, tokens) for i in range(options.samples)], params)
        for number, answer in enumerate(answers, 1):
            if options.samples > 1:
                print(f"--- {number} of {options.samples}")
            text = model.decode(answer.tokens)
            print(visible(text) if sys.stdout.isatty() else text, flush=True)
            if not answer.finished:
                print(f"(cut at {len(answer.tokens)} tokens)", file=sys.stderr)
