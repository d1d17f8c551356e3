"""`bridge-mcore eval`: accuracy of an HF checkpoint on problems with known answers."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from bridge_mcore.config.schema import Data, DataSource
from bridge_mcore.data.pairs import encode_prompts
from bridge_mcore.data.problems import load_problems, source_name
from bridge_mcore.evaluation.evaluate import Record, evaluate, write_records
from bridge_mcore.evaluation.metrics import mean_pass_at_k
from bridge_mcore.evaluation.options import EvaluationOptions
from bridge_mcore.monitoring.curves import wilson
from bridge_mcore.monitoring.progress import track
from bridge_mcore.rewards import MathVerifier
from bridge_mcore.rewards.judge import Judge
from bridge_mcore.rollout.engine import SamplingParams
from bridge_mcore.rollout.inference import open_model

#: Problems answered between two marks of progress.
_BLOCK = 64


def run_evaluation(options: EvaluationOptions) -> None:
    """Answer, verify, print a table; write the records if asked to."""
    source = DataSource(path=options.path, task=options.task, limit=options.limit, split="test")
    if options.task is not None:
        source = DataSource(task=options.task, size=options.limit or 256, split="test")
    name = source_name(source)
    problems = load_problems(source)
    with open_model(options.model, options.template, options.device) as model, MathVerifier() as verifier:
        data = Data(template=options.template)
        prompts = encode_prompts(problems, model.tokenizer, data, model.shape.max_positions - options.max_new_tokens)
        judge = Judge(verifier, model.decode)
        params = SamplingParams(options.max_new_tokens, options.temperature, 1.0, model.stops, options.seed)
        records: list[Record] = []
        blocks = [prompts[i : i + _BLOCK] for i in range(0, len(prompts), _BLOCK)]
        for block in track(blocks, len(blocks), f"answering {len(prompts)} problems"):
            first = len(records)
            records += evaluate(
                {name: block}, model.engine, judge, model.layout, params, options.samples, first
            ).records
    if options.output is not None:
        write_records(options.output, records)
    k = options.samples
    correct = [sum(r.verdict == "correct" for r in records[i : i + k]) for i in range(0, len(records), k)]
    table = Table(show_header=False)
    table.add_row("model", str(options.model))
    table.add_row("problems", f"{len(problems)} of {name}")
    accuracy = mean_pass_at_k(correct, k, 1)
    low, high = wilson(accuracy, len(problems))
    how = "greedy" if options.temperature == 0 else f"temperature {options.temperature:g}"
    table.add_row("accuracy" if k == 1 else f"avg@{k}", f"{accuracy:.1%}  [{low:.1%}, {high:.1%}]  ({how})")
    if k > 1:
        table.add_row(f"pass@{k}", f"{mean_pass_at_k(correct, k, k):.1%}")
    table.add_row("answer length", f"{sum(r.tokens for r in records) / len(records):.1f} tokens")
    table.add_row("cut short", f"{sum(not r.finished for r in records) / len(records):.1%}")
    other = {v: n for v, n in Counter(r.verdict for r in records).items() if v not in ("correct", "incorrect")}
    if other:
        table.add_row("not decided", ", ".join(f"{n} {v}" for v, n in other.items()))
    if options.output is not None:
        table.add_row("records", str(options.output))
    Console().print(table)
