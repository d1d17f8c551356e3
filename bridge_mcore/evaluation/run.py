"""Answer and judge the benchmarks of a suite with one model; go on where an earlier command stopped."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridge_mcore.checkpoint.hf import check_checkpoint
from bridge_mcore.config.json_file import read_json_object
from bridge_mcore.data.contradictions import note_contradictions
from bridge_mcore.data.notes import Notes, lines
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.problems import load_problems
from bridge_mcore.data.sources import pinned
from bridge_mcore.data.stops import load_tokenizer, stop_token_ids
from bridge_mcore.data.templates import PromptTemplate
from bridge_mcore.errors import CheckpointError, ConfigError, DataError
from bridge_mcore.evaluation.answerer import Answerer, open_answerer
from bridge_mcore.evaluation.files import SETTINGS_FILE, write_json
from bridge_mcore.evaluation.options import EvaluationOptions
from bridge_mcore.evaluation.records import Record, RecordFile, record_of
from bridge_mcore.evaluation.suites import Benchmark, how_answered, place
from bridge_mcore.model.families import find_family
from bridge_mcore.monitoring.progress import say, track
from bridge_mcore.rewards.mixed import Rewards
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.thoughts import TAIL, opens_thought
from bridge_mcore.rewards.verdict import Verdict
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.stop_text import cut_at_text, without_stop

#: Samples of one problem are so many numbers apart: more problems or more samples leave the others' draws as they are.
_KEYS = 1 << 20
#: token ids -> text, without special tokens
Decode = Callable[[Sequence[int]], str]
#: (problems, attempts) -> verdicts
Judge = Callable[[Sequence[Problem], Sequence[Attempt]], Sequence[Verdict]]


@dataclass(frozen=True)
class Work:
    """One benchmark, ready to be answered.

    Attributes:
        prompts: token ids of each problem's prompt.
        params: how it is answered. max_new_tokens may be less than asked for, where the model's context is short.
        revision: commit of the hub's set; None where it comes from elsewhere, or the hub did not say.
    """

    benchmark: Benchmark
    problems: list[Problem]
    prompts: list[list[int]]
    params: SamplingParams
    samples: int
    revision: str | None = None

    def settings(self) -> dict[str, Any]:
        """What answers depend on, and more of which would not change those that there are.

        Problems are ids, made from prompt and gold, in their order, and what judges each.
        """
        params = asdict(self.params)
        for name in ("stop_token_ids", "stop_texts"):  # of the model and of the template, which are compared
            params.pop(name)
        return {**params, "samples": self.samples, "problems": {p.id: p.reward for p in self.problems},
                "tolerance": self.benchmark.tolerance, "revision": self.revision}  # fmt: skip


def prepare(options: EvaluationOptions, model: Path) -> tuple[list[Work], PromptTemplate]:
    """Read and encode all benchmarks of a suite for a model. What cannot be answered fails here.

    Raises DataError or ConfigError naming benchmark, problem and mend.
    """
    family, shape = find_family(model)
    check_checkpoint(model, family, shape)
    tokenizer = load_tokenizer(model, shape.vocab_size)
    template = PromptTemplate(tokenizer, options.template, options.system_prompt, options.instruction)
    stops = stop_token_ids(model, template)
    return [_work(b, options, template, stops, shape.max_positions) for b in options.suite.benchmarks], template


def _work(
    benchmark: Benchmark, options: EvaluationOptions, template: PromptTemplate, stops: tuple[int, ...], context: int
) -> Work:
    rows = Notes()
    source, revision = pinned(place(benchmark, options.data_dir), rows)
    if options.limit is not None:
        limit = min(options.limit, source.limit or options.limit)
        source = source.model_copy(update={"limit": limit, "size": min(source.size, limit)})
    loaded = load_problems(source, plugins=options.suite.plugins, notes=rows, repeats="once")
    # Rows that differ in their trace alone are one problem.
    first: dict[str, Problem] = {}
    for problem in loaded:
        if first.setdefault(problem.id, problem) is not problem:
            rows.add("repeated", str(problem))
    problems = list(first.values())
    template.notes = notes = Notes()
    prompts = [template.prompt(problem, context) for problem in problems]
    notes["kept"] = len(prompts)
    with closing(Rewards()) as rewards:
        note_contradictions([(rows, problem) for problem in problems], [], rewards.judge)
    for line in lines(benchmark.name, rows, {"prompts": notes}):
        say(line)

    how = how_answered(benchmark, options.suite, options.answers)
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    room = context - len(prompts[longest])
    if room < 1:
        raise DataError(
            f"{benchmark.name}: {problems[longest]} has a prompt of at least {len(prompts[longest])} tokens, and the "
            f"model's context is {context}; choose another benchmark, or leave the row out of the file"
        )
    if room < how.max_new_tokens:
        wanted = how.max_new_tokens
        say(f"· {benchmark.name}: answers are cut at {room} tokens, not {wanted}: the model's context is {context}")
    params = SamplingParams(
        max_new_tokens=min(how.max_new_tokens, room),
        temperature=how.temperature,
        top_p=how.top_p,
        stop_token_ids=stops,
        seed=(options.seed << 32) ^ zlib.crc32(benchmark.name.encode()),
        stop_texts=template.stop_texts,
    )
    return Work(benchmark, problems, prompts, params, how.samples, revision)


def model_fingerprint(model: Path) -> str:
    """SHA-256 over a checkpoint's configuration, tokenizer, and the sizes, headers and sampled bytes of its weights."""
    digest = hashlib.sha256()
    for path in sorted(p for p in model.iterdir() if p.suffix in (".json", ".jinja", ".model", ".safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with open(path, "rb") as file:
            if path.suffix != ".safetensors" or size <= 1 << 26:
                digest.update(file.read())
                continue
            for place in range(64):
                file.seek(place * (size - (1 << 16)) // 63)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()


def check_settings(directory: Path, found: dict[str, Any], restart: bool) -> None:
    """Compare with what `directory` was begun with, and note it there. Raises ConfigError naming what differs.

    More samples or more problems are no difference: what is there stays.

    restart: forget all that was answered there, also of benchmarks that are not asked now: it goes with the settings.
    """
    path, records = directory / SETTINGS_FILE, directory / "records"
    if restart:
        if records.is_dir():
            shutil.rmtree(records)  # what cannot be removed must not be taken for the new settings' answers
        path.unlink(missing_ok=True)
    elif path.is_file():
        try:
            old = read_json_object(path)
            faults = _differences(old, found)
            merged = {**old["benchmarks"], **found["benchmarks"]}
        except (CheckpointError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{path} is damaged; give --restart, or another --output") from None
        if faults:
            more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise ConfigError(
                f"{directory} holds an evaluation with other settings ({'; '.join(faults[:3])}{more}); give another "
                "--output, or --restart to forget it"
            )
        found = {**found, "benchmarks": merged}
    elif records.is_dir() and any(records.iterdir()):
        raise ConfigError(f"{records} holds answers, but how they came about is lost ({path}); give --restart")
    write_json(path, found)


def _differences(old: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """In what two settings differ that must not be mixed."""
    faults = [f"{key}: {old.get(key)!r}, now {found[key]!r}" for key in found
              if key != "benchmarks" and old.get(key) != found[key]]  # fmt: skip
    for name in found["benchmarks"].keys() & old["benchmarks"].keys():
        a, b = old["benchmarks"][name], found["benchmarks"][name]
        faults += [f"{name}.{k}: {a.get(k)!r}, now {b[k]!r}" for k in b
                   if k not in ("samples", "problems", "revision") and a.get(k) != b[k]]  # fmt: skip
        # More or fewer of the same problems: the shorter list begins the longer one.
        if any(one != other for one, other in zip(a["problems"].items(), b["problems"].items(), strict=False)):
            faults.append(f"{name}: other problems, or other rewards that judge them")
    return faults


def answer_all(
    works: Sequence[Work], template: PromptTemplate, options: EvaluationOptions, model: Path, directory: Path,
    judge_of: Callable[[Benchmark], Judge],
) -> dict[str, list[Record]]:  # fmt: skip
    """Answer what is not answered yet; the records of each benchmark, in the order of its problems and samples.

    A model is loaded (servers are started) only if something is missing.
    """

    def decode(tokens: Sequence[int]) -> str:
        return str(template.tokenizer.decode(list(tokens), skip_special_tokens=True))

    fault = [w.benchmark.name for w in works if len(w.problems) >= _KEYS]
    if fault:
        raise DataError(f"{fault[0]} has more than {_KEYS} problems; give --limit")
    records: dict[str, list[Record]] = {}
    with ExitStack() as stack:
        files = {}
        for work in works:
            path = directory / "records" / f"{work.benchmark.name}.jsonl"
            files[work.benchmark.name] = stack.enter_context(RecordFile(path))
        missing = {w.benchmark.name: _missing(w, files[w.benchmark.name].records) for w in works}
        done = sum(len(f.records) for f in files.values())
        if done:
            say(f"· {done} answers of an earlier command are kept")
        if any(missing.values()):
            context = max(
                max(map(len, w.prompts)) + w.params.max_new_tokens for w in works if missing[w.benchmark.name]
            )
            answerer = stack.enter_context(
                open_answerer(model, options.serving, context, works[0].params, directory, decode)
            )
            for work in works:
                name = work.benchmark.name
                if missing[name]:
                    blocks = _answered(work, missing[name], answerer, decode, judge_of(work.benchmark))
                    count = len(missing[name])
                    for block in _progress(blocks, count, f"{name}: {count} answers"):
                        files[name].append(block)
        for work in works:
            records[work.benchmark.name] = _ordered(work, files[work.benchmark.name].records)
    return records


def _missing(work: Work, records: Sequence[Record]) -> list[tuple[int, int]]:
    """(problem, sample) of answers that are not there. Samples of one problem are neighbours."""
    there = {(r.id, r.sample) for r in records}
    return [
        (i, j) for i, problem in enumerate(work.problems) for j in range(work.samples) if (problem.id, j) not in there
    ]


def _ordered(work: Work, records: Sequence[Record]) -> list[Record]:
    found = {(r.id, r.sample): r for r in records}
    return [found[problem.id, j] for problem in work.problems for j in range(work.samples)]


def _answered(
    work: Work, wanted: Sequence[tuple[int, int]], answerer: Answerer, decode: Decode, judge: Judge
) -> Iterator[list[Record]]:
    requests = [Request(j * _KEYS + i, tuple(work.prompts[i])) for i, j in wanted]
    for rollouts in answerer.stream(requests, work.params):
        yield list(judged(work, rollouts, decode, judge))


def judged(work: Work, rollouts: Sequence[Rollout], decode: Decode, judge: Judge) -> Iterator[Record]:
    """Records of answers, whose keys say to which problem and sample they belong."""
    places = [(r.key % _KEYS, r.key // _KEYS) for r in rollouts]
    problems = [work.problems[i] for i, _ in places]
    stops = work.params.stop_texts
    rollouts = [cut_at_text(r, stops, decode) for r in rollouts]
    texts = [without_stop(decode(r.tokens), stops) for r in rollouts]
    attempts = [
        Attempt(p.answer, text, p.prompt, p.id, j, len(r.tokens), r.finished, opens_thought(decode(r.prompt[-TAIL:])))
        for p, text, (_, j), r in zip(problems, texts, places, rollouts, strict=True)
    ]
    for problem, attempt, verdict in zip(problems, attempts, judge(problems, attempts), strict=True):
        yield record_of(work.benchmark.name, problem, attempt, verdict)


def _progress(blocks: Iterator[list[Record]], total: int, text: str) -> Iterator[list[Record]]:
    """Blocks, shown as the answers that they hold."""

    def answers() -> Iterator[list[Record] | None]:
        for block in blocks:
            yield block
            yield from [None] * (len(block) - 1)

    for block in track(answers(), total, text):
        if block is not None:
            yield block
