"""`bridge-mcore eval` and `bridge-mcore scores`: answer, judge, and show what came of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bridge_mcore import __version__
from bridge_mcore.config.json_file import read_json_object, shown
from bridge_mcore.data.templates import AUTO
from bridge_mcore.errors import BridgeError, CheckpointError, ConfigError, DataError
from bridge_mcore.evaluation import tables
from bridge_mcore.evaluation.files import RESULTS_FILE, SETTINGS_FILE, write_json
from bridge_mcore.evaluation.majority import Same
from bridge_mcore.evaluation.options import EvaluationOptions, Subject
from bridge_mcore.evaluation.records import Record, read_records
from bridge_mcore.evaluation.results import ModelResult, benchmark_result, compare, model_result
from bridge_mcore.evaluation.run_answers import files_of_run, read_run_answers
from bridge_mcore.evaluation.subjects import hf_directory
from bridge_mcore.evaluation.suites import is_record_name
from bridge_mcore.evaluation.verifiers import Verifiers
from bridge_mcore.monitoring.progress import phase, say
from bridge_mcore.monitoring.text import visible
from bridge_mcore.platform.locks import FileLock
from bridge_mcore.rewards.golds import check_golds
from bridge_mcore.rewards.mixed import RewardSettings

Answered = dict[str, list[Record]]


def run_evaluation(options: EvaluationOptions) -> None:
    """Evaluate all models, write records and tables, and print them."""
    with ExitStack() as stack:
        verifiers = stack.enter_context(Verifiers(options.workers, RewardSettings(plugins=options.suite.plugins)))
        found: list[tuple[str, Answered, dict[str, int]]] = []
        for subject in options.subjects:
            if len(options.subjects) > 1:
                say(f"== {subject.label}")
            with _alone(options.output / subject.label):
                found.append((subject.label, *_evaluate(subject, options, verifiers)))
        with phase("computing intervals"):
            models = [_result(label, answered, samples, verifiers.same) for label, answered, samples in found]
        for model in models:
            write_json(options.output / model.label / RESULTS_FILE, model.summary())
        show_results(models, "text")
        write_tables(options.output, options.suite_name, models)
        show_failures([(label, answered) for label, answered, _ in found], options.failures)
        say(f"→ {options.output}   (again: bridge-mcore scores {options.output})")
        _check_judged(models, {label: answered for label, answered, _ in found})


def _check_judged(models: Sequence[ModelResult], answered: dict[str, Answered]) -> None:
    """Raises BridgeError where none of a benchmark's answers could be judged: it has no accuracy."""
    for model in models:
        for name in (name for name, found in model.benchmarks.items() if not found.judged):
            records = answered[model.label][name]
            raise BridgeError(
                f"{model.label}, {name}: none of its {len(records)} answers could be judged; the first: "
                f"{records[0].verdict}: {records[0].reason}. The answers are kept; once the reward is mended, "
                "--restart answers and judges them anew"
            )


def _alone(directory: Path) -> FileLock:
    """Only one command at a time writes there; who comes second is told who does. ConfigError where nobody can."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output {directory}: nothing can be written there ({error.strerror or error}); give another directory"
        ) from None
    return FileLock(directory / ".lock", str(directory), say)


def _evaluate(subject: Subject, options: EvaluationOptions, verifiers: Verifiers) -> tuple[Answered, dict[str, int]]:
    """(records by benchmark, samples by benchmark) of one model."""
    import torch

    # Here, because `scores` needs no torch.
    from bridge_mcore.evaluation.run import answer_all, check_settings, model_fingerprint, prepare

    directory = options.output / subject.label
    serving = options.serving
    dtype = getattr(torch, serving.dtype) if serving.dtype else None
    with hf_directory(subject, options.adapter, dtype, directory / "model") as model:
        works, template = prepare(options, model)
        for work in works:
            verifiers.prepare(work.benchmark, {problem.reward for problem in work.problems})
        settings: dict[str, Any] = {
            "fingerprint": model_fingerprint(model), "template": options.template,
            "system_prompt": options.system_prompt,
            # None for what a template says by itself: as in settings of before there was a choice
            "instruction": None if options.instruction == AUTO else options.instruction or "",
            "engine": serving.engine, "dtype": serving.weights,
            "benchmarks": {work.benchmark.name: work.settings() for work in works},
        }  # fmt: skip
        check_settings(directory, settings, options.restart)
        write_json(directory / "command.json", {
            "bridge_mcore": __version__, "model": str(subject.path.absolute()), "suite": options.suite_name,
            "device": serving.device, "suite_file": options.suite.model_dump(mode="json"),
        })  # fmt: skip
        for remark in check_golds(problem for work in works for problem in work.problems):
            say(remark)
        records = answer_all(works, template, options, model, directory, verifiers.judge_of)
    return records, {work.benchmark.name: work.samples for work in works}


def _result(label: str, answered: Answered, samples: dict[str, int], same: Same) -> ModelResult:
    return model_result(label, {n: benchmark_result(r, samples[n], same) for n, r in answered.items()})


def show_results(models: Sequence[ModelResult], form: str) -> None:
    """Print all tables as text, Markdown or JSON."""
    if form == "json":
        print(json.dumps(_plain(models), indent=1))
        return
    for title, rows in _tables(models):
        if form == "markdown":
            print(visible(f"{title}\n\n{tables.markdown(rows)}"))
        else:
            tables.show(rows, title)


def _tables(models: Sequence[ModelResult]) -> list[tuple[str, tables.Rows]]:
    greedy = all(b.samples == 1 for m in models for b in m.benchmarks.values())
    title = "accuracy, % [95 % interval over problems]" + ("" if greedy else ", mean over samples (avg@k)")
    found = [(title, tables.scores_table(models))]
    found += [(f"{model.label}: answers", tables.details_table(model)) for model in models]
    if len(models) > 1:
        title = "difference, points [95 % interval], paired by problem; p of a permutation test"
        found.append((title, tables.comparison_table(compare(models))))
    return found


def _plain(models: Sequence[ModelResult]) -> dict[str, Any]:
    return {
        "models": [model.summary() for model in models],
        "comparisons": [asdict(comparison) for comparison in compare(models)],
    }


def write_tables(output: Path, heading: str, models: Sequence[ModelResult]) -> None:
    """results.md and results.json of a command's models."""
    output.mkdir(parents=True, exist_ok=True)
    text = "\n".join(f"{title}\n\n{tables.markdown(rows)}" for title, rows in _tables(models))
    (output / "results.md").write_text(f"# {heading}\n\n{text}")
    write_json(output / RESULTS_FILE, _plain(models))


def show_failures(found: Sequence[tuple[str, Answered]], count: int, tell: Callable[[str], None] = say) -> None:
    """Print wrong answers of each benchmark of each model."""
    for label, answered in found if count else ():
        for name, records in answered.items():
            if text := tables.failures_text(records, count):
                tell(f"\n=== {label}, {name}\n{text}")


def read_answers(directory: Path, tell: Callable[[str], None] = say) -> tuple[Answered, dict[str, int]]:
    """(records, samples) by benchmark of a model's directory: only problems whose samples are all there.

    Raises DataError if it holds no evaluation.
    """
    asked = _asked(directory / SETTINGS_FILE)
    answered: Answered = {}
    samples: dict[str, int] = {}
    for name, (count, problems) in asked.items():
        file = directory / "records" / f"{name}.jsonl"
        if not file.is_file():
            continue
        groups: dict[str, dict[int, Record]] = {}
        for record in read_records(file):
            groups.setdefault(record.id, {})[record.sample] = record
        # Those of the last command: a larger --limit before it has left more.
        begun = [groups[problem] for problem in problems if problem in groups]
        whole = [group for group in begun if all(j in group for j in range(count))]
        if len(whole) < len(problems):
            tell(f"· {directory.name}, {name}: {len(whole)} of {len(problems)} problems are answered")
        if whole:
            answered[name] = [group[j] for group in whole for j in range(count)]
            samples[name] = count
    if not answered:
        raise DataError(f"{directory} holds no finished answers yet")
    return answered, samples


def _asked(path: Path) -> dict[str, tuple[int, list[str]]]:
    """(samples, ids of problems) of each benchmark in an evaluation's settings. DataError if they are damaged."""
    said = read_json_object(path, missing=f"{path.parent} holds no evaluation: it has no {path.name}", kind=DataError)
    benchmarks = said.get("benchmarks")
    if not isinstance(benchmarks, dict):
        raise DataError(f"{path} is damaged: it names no benchmarks; evaluate anew with --restart")
    asked = {}
    for name, known in benchmarks.items():
        samples, problems = (known.get(key) for key in ("samples", "problems")) if isinstance(known, dict) else (0, 0)
        if not is_record_name(name) or type(samples) is not int or samples < 1 or not isinstance(problems, dict):
            raise DataError(f"{path} is damaged at the benchmark {shown(name)}; evaluate anew with --restart")
        asked[name] = (samples, list(problems))
    return asked


def run_scores(directories: Sequence[Path], form: str, failures: int, workers: int) -> None:
    """Print the tables of evaluations that were made before."""
    tell = _aside if form == "json" else say
    places: list[Path] = []
    for directory in directories:
        alone = (directory / SETTINGS_FILE).is_file() or files_of_run(directory)
        inside = [directory] if alone else _models_in(directory)
        if not inside:
            raise DataError(
                f"{directory} holds no evaluation; give a directory that `bridge-mcore eval` wrote, or a run's"
            )
        places += [path.resolve() for path in inside]
    places = list(dict.fromkeys(places))
    found = [
        (label, *(read_run_answers if files_of_run(path) else read_answers)(path, tell))
        for label, path in zip(_labels(places), places, strict=True)
    ]
    with Verifiers(workers) as verifiers:
        models = [_result(label, answered, samples, verifiers.same) for label, answered, samples in found]
    show_results(models, form)
    show_failures([(label, answered) for label, answered, _ in found], failures, tell)


def _aside(text: str) -> None:
    """Say it where it is no part of what is printed for programs."""
    print(visible(text.encode(errors="replace").decode()), file=sys.stderr, flush=True)


def _labels(places: Sequence[Path]) -> list[str]:
    """A name for each of several directories: its last parts, as many as tell them all apart."""
    for count in range(1, max((len(p.parts) for p in places), default=0) + 1):
        labels = ["/".join(p.parts[-count:]) for p in places]
        if len(set(labels)) == len(labels):
            return labels
    return [str(p) for p in places]


def _models_in(directory: Path) -> list[Path]:
    """Directories of the models that were evaluated there; those of the last command first, in its order."""
    try:
        said = read_json_object(directory / RESULTS_FILE).get("models")
    except CheckpointError:
        said = None  # of an evaluation that was stopped: in the order of their names
    order = [model.get("model") for model in said if isinstance(model, dict)] if isinstance(said, list) else []
    there = sorted(path.parent for path in directory.glob(f"*/{SETTINGS_FILE}"))
    return sorted(there, key=lambda path: order.index(path.name) if path.name in order else len(order))
