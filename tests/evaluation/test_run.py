"""Evaluations of a tiny model: the same answers however often they are broken off, and no others' taken for them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.templates import STOP_TEXTS
from bridge_mcore.errors import BridgeError, ConfigError, DataError
from bridge_mcore.evaluation.answerer import gathered
from bridge_mcore.evaluation.command import _alone, read_answers, run_evaluation, run_scores
from bridge_mcore.evaluation.options import EvaluationOptions, Serving, Subject
from bridge_mcore.evaluation.records import Record, RecordFile, read_records
from bridge_mcore.evaluation.suites import SUITES, Answers, Benchmark, Suite, load_suite
from bridge_mcore.platform.locks import LockHeld
from bridge_mcore.rollout.embedded import EmbeddedEngine
from tests.models import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights and the tokenizer of the generated task."""
    from bridge_mcore.data.tokenizer import task_tokenizer, task_vocabulary

    directory = tmp_path_factory.mktemp("model") / "tiny"
    save_tiny("qwen2", directory, vocab=len(task_vocabulary()))
    task_tokenizer("running_sums").save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def one_world(world, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has its world already."""

    @contextlib.contextmanager
    def groups(*_: object, **__: object):
        yield world[1]

    monkeypatch.setattr("bridge_mcore.evaluation.answerer.process_groups", groups)


def options(model: Path, output: Path, **changes) -> EvaluationOptions:
    source = DataSource(task="running_sums", difficulty=(2, 3), size=12, split="test")
    suite = Suite(
        max_new_tokens=6,
        benchmarks=[
            Benchmark(name="sums", source=source),
            Benchmark(name="long", source=source.model_copy(update={"difficulty": (4, 5)}), samples=3, temperature=1.0),
        ],
    )
    found = EvaluationOptions((Subject("tiny", model),), suite, "test", output, template="plain")
    return dataclasses.replace(found, **changes)


def answers(directory: Path) -> dict[tuple[str, str, int], str]:
    return {key: record.response for key, record in written(directory).items()}


def written(directory: Path) -> dict[tuple[str, str, int], Record]:
    found = [r for path in (directory / "records").iterdir() for r in read_records(path)]
    return {(r.set, r.id, r.sample): r for r in found}


def test_an_evaluation_goes_on_where_it_was_broken_off(model, tmp_path, monkeypatch, seed):
    run_evaluation(options(model, tmp_path / "whole"))
    whole = answers(tmp_path / "whole" / "tiny")
    assert len(whole) == 12 + 36 and len(set(whole.values())) > 10
    assert {r.tokens for r in read_records(tmp_path / "whole/tiny/records/sums.jsonl")} <= set(range(1, 7))

    stream, calls = EmbeddedEngine.stream, []

    def breaks(self, requests, params):
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        yield from stream(self, requests, params)

    monkeypatch.setattr("bridge_mcore.evaluation.answerer._BATCH", 5)
    # A clock whose every reading is much later: what is finished is handed on at once.
    readings = itertools.count(step=1000)
    monkeypatch.setattr("bridge_mcore.evaluation.answerer.time", SimpleNamespace(monotonic=lambda: next(readings)))
    monkeypatch.setattr(EmbeddedEngine, "stream", breaks)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(options(model, tmp_path / "part"))
    path = tmp_path / "part/tiny/records/sums.jsonl"
    assert len(read_records(path)) == 10
    content = path.read_bytes()
    path.write_bytes(content[: -(1 + seed % 40)])  # a kill in the middle of a line
    run_evaluation(options(model, tmp_path / "part"))
    assert answers(tmp_path / "part" / "tiny") == whole
    assert sum(calls) == 5 + 5 + 2 + 3 + 36  # two blocks, the one that broke off, what was missing
    run_evaluation(options(model, tmp_path / "part"))  # nothing is missing: the model is not even loaded
    assert sum(calls) == 51
    for name in ("results.json", "results.md"):
        assert (tmp_path / "part" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_an_answer_is_written_when_it_is_finished(model, tmp_path, monkeypatch):
    """Not when its batch is: a kill loses what is being decoded and nothing else."""
    ends = tmp_path / "ends"
    shutil.copytree(model, ends)
    (ends / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(1, 60))}))
    asked = options(ends, tmp_path / "part", answers=Answers(max_new_tokens=40, temperature=1.0))
    run_evaluation(dataclasses.replace(asked, output=tmp_path / "whole"))
    stream, written = EmbeddedEngine.stream, []
    path = tmp_path / "part/tiny/records/sums.jsonl"

    def breaks(self, requests, params):
        given = 0
        for done in stream(self, requests, params):
            yield done
            given += len(done)
            written.append((given, len(path.read_text().splitlines()) if path.exists() else 0))
            if 6 <= given < len(requests):
                raise KeyboardInterrupt

    readings = itertools.count(step=1000)
    with monkeypatch.context() as patched:
        patched.setattr("bridge_mcore.evaluation.answerer.time", SimpleNamespace(monotonic=lambda: next(readings)))
        patched.setattr(EmbeddedEngine, "stream", breaks)
        with pytest.raises(KeyboardInterrupt):
            run_evaluation(asked)
    assert all(given == lines for given, lines in written) and len({lines for _, lines in written}) > 2
    run_evaluation(asked)
    assert answers(tmp_path / "part" / "tiny") == answers(tmp_path / "whole" / "tiny")


def test_stop_texts_end_generation_and_records_are_those_of_answers_that_are_cut(model, tmp_path, monkeypatch):
    """Against an engine that generates every answer to its end; texts that stand within the task's tokens, too."""
    monkeypatch.setitem(STOP_TEXTS, "plain", ("1", "ab"))
    stream, generated = EmbeddedEngine.stream, []

    def counted(self, requests, params):
        for done in stream(self, requests, params):
            generated.append(sum(len(r.tokens) for r in done.values()))
            yield done

    monkeypatch.setattr(EmbeddedEngine, "stream", counted)
    chosen = Answers(max_new_tokens=40, temperature=1.0)
    run_evaluation(options(model, tmp_path / "stopped", answers=chosen))
    stopped = sum(generated)
    generated.clear()
    monkeypatch.setattr(
        EmbeddedEngine,
        "stream",
        lambda self, requests, params: counted(self, requests, dataclasses.replace(params, stop_texts=())),
    )
    run_evaluation(options(model, tmp_path / "cut", answers=chosen))
    records = {name: written(tmp_path / name / "tiny") for name in ("stopped", "cut")}
    assert records["stopped"] == records["cut"] and len(records["cut"]) == 12 + 36
    assert sum(r.tokens for r in records["stopped"].values()) == stopped < 0.8 * sum(generated)
    assert not any("1" in r.response or "ab" in r.response for r in records["stopped"].values())
    for name in ("stopped", "cut"):  # directories of before go on: which texts end answers is the template's
        assert "stop_texts" not in (tmp_path / name / "tiny/settings.json").read_text()


def test_what_is_finished_together_is_judged_together(monkeypatch):
    """Blocks of a moment are one; a slow judge gets more at a time; nothing waits for an answer that is not there."""
    now = [0.0]
    monkeypatch.setattr("bridge_mcore.evaluation.answerer.time", SimpleNamespace(monotonic=lambda: now[0]))

    def decoded():
        for block in (["a"], [], ["b"], [], [], ["c"], ["d"], ["e"], ["f"], [], ["g"]):
            now[0] += 0.1
            yield block

    found = []
    for block in gathered(decoded(), 0.25):
        found.append("".join(block))
        now[0] += 0.35 if found == ["ab"] else 0.0  # judging the first takes longer than the others gather
    assert found == ["ab", "cd", "ef", "g"]


def test_more_samples_and_problems_leave_the_rest_as_it_is(model, tmp_path):
    few = options(model, tmp_path, limit=5)
    run_evaluation(few)
    before = answers(tmp_path / "tiny")
    more = few.suite.model_copy(update={"benchmarks": few.suite.benchmarks[1:]})
    run_evaluation(dataclasses.replace(few, limit=8, suite=more, answers=Answers(samples=4)))
    after = answers(tmp_path / "tiny")
    assert all(after[key] == text for key, text in before.items())
    assert sum(key[0] == "long" for key in after) == 8 * 4


def test_other_settings_are_not_mixed_in(model, tmp_path):
    run_evaluation(options(model, tmp_path, limit=3))
    records = (tmp_path / "tiny/records/long.jsonl").read_bytes()
    for changes, said in (
        ({"seed": 1}, "seed"),
        ({"answers": Answers(max_new_tokens=4)}, "max_new_tokens: 6, now 4"),
        ({"answers": Answers(top_p=0.5)}, "top_p"),
    ):
        with pytest.raises(ConfigError, match=f"other settings .*{said}.*--restart"):
            run_evaluation(options(model, tmp_path, limit=3, **changes))
    other = tmp_path / "other"
    save_tiny("qwen2", other, seed=5, vocab=64)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (other / name).write_bytes((model / name).read_bytes())
    weights = (model / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-4] + b"\0\0\0\0")
    with pytest.raises(ConfigError, match="fingerprint"):
        run_evaluation(options(other, tmp_path, limit=3))
    assert (tmp_path / "tiny/records/long.jsonl").read_bytes() == records
    run_evaluation(options(model, tmp_path, limit=3, seed=1, restart=True))
    assert (tmp_path / "tiny/records/long.jsonl").read_bytes() != records


def test_other_problems_and_other_numbers_are_not_mixed_in(model, tmp_path):
    run_evaluation(options(model, tmp_path, limit=3))
    few = options(model, tmp_path)
    harder = DataSource(task="running_sums", difficulty=(3, 3), size=5, split="test")
    judged = few.suite.benchmarks[0].source.model_copy(update={"reward": "choice"})
    for source in (harder, judged):  # also where their number is another one
        suite = few.suite.model_copy(update={"benchmarks": [Benchmark(name="sums", source=source)]})
        with pytest.raises(ConfigError, match="sums: other problems, or other rewards"):
            run_evaluation(options(model, tmp_path, suite=suite, limit=5))
    with pytest.raises(ConfigError, match="dtype: 'float32', now 'bfloat16'"):
        run_evaluation(options(model, tmp_path, limit=3, serving=Serving(dtype="bfloat16")))


def test_a_restart_forgets_benchmarks_that_are_not_asked_now(model, tmp_path):
    """Else their answers would be taken for those of the new settings."""
    both = options(model, tmp_path, limit=3)
    run_evaluation(both)
    old = (tmp_path / "tiny/records/long.jsonl").read_bytes()
    one = both.suite.model_copy(update={"benchmarks": both.suite.benchmarks[:1]})
    run_evaluation(options(model, tmp_path, limit=3, seed=1, suite=one, restart=True))
    assert not (tmp_path / "tiny/records/long.jsonl").exists()
    run_evaluation(options(model, tmp_path, limit=3, seed=1))
    assert (tmp_path / "tiny/records/long.jsonl").read_bytes() != old
    (tmp_path / "tiny/settings.json").unlink()
    with pytest.raises(ConfigError, match="holds answers, but how they came about is lost"):
        run_evaluation(options(model, tmp_path, limit=3))
    (tmp_path / "tiny/settings.json").write_text('{"benchmarks": {"sums": 3}}')
    with pytest.raises(ConfigError, match="damaged"):
        run_evaluation(options(model, tmp_path, limit=3))
    with pytest.raises(DataError, match=r"settings\.json is damaged at the benchmark 'sums'"):
        read_answers(tmp_path / "tiny")


def test_one_command_at_a_time(model, tmp_path):
    with _alone(tmp_path / "tiny"), pytest.raises(LockHeld, match=r"is being written by process \d+ on "):
        run_evaluation(options(model, tmp_path, limit=1))


def test_rows_that_repeat_each_other_are_one_problem(model, tmp_path, capsys):
    """Also letter by letter; and what contradicts itself is said, as is what the tokenizer does not know."""
    rows = [{"question": f"Q:a{i}b2A:", "answer": str(i + 2)} for i in (1, 2, 2, 3, 1)]
    rows += [{"question": "Q:a3b2A:", "answer": "7"}, {"question": "Q:a4b2 ?A:", "answer": "6"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = Benchmark(name="twice", source=DataSource(path=tmp_path / "rows.jsonl"))
    run_evaluation(options(model, tmp_path, suite=Suite(max_new_tokens=4, benchmarks=[benchmark])))
    said = capsys.readouterr().out
    assert "twice: 2 rows repeat a problem, which is asked once" in said
    assert "twice: 1 of 5 rows ask what another row asks, with another right answer" in said
    assert "twice: 1 of 5 prompts hold " in said
    assert len(read_records(tmp_path / "tiny/records/twice.jsonl")) == 5


def test_the_commit_of_a_hub_set_is_said_and_recorded(model, tmp_path, monkeypatch, capsys):
    import datasets
    import huggingface_hub

    asked: list[str | None] = []

    def load_dataset(name, config, *, split, revision):
        asked.append(revision)
        return datasets.Dataset.from_list([{"question": "Q:a1b2A:", "answer": "3"}])

    class HfApi:
        def dataset_info(self, name, revision):
            if name == "nobody/answers":
                raise ConnectionError("no hub")
            return type("Info", (), {"sha": "c" * 40})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)

    def evaluated(output: str, **source: str) -> tuple[str, str | None]:
        suite = Suite(max_new_tokens=4, benchmarks=[Benchmark(name="hub", source=DataSource(**source))])
        run_evaluation(options(model, tmp_path / output, suite=suite))
        settings = json.loads((tmp_path / output / "tiny/settings.json").read_text())
        return capsys.readouterr().out, settings["benchmarks"]["hub"]["revision"]

    said, revision = evaluated("a", dataset="some/set")
    assert f"dataset_revision is not set: what was read is the newest commit of the hub's set: {'c' * 40}" in said
    assert revision == "c" * 40
    said, revision = evaluated("b", dataset="some/set", dataset_revision="a" * 40)
    assert "dataset_revision" not in said and revision == "a" * 40
    said, revision = evaluated("c", dataset="nobody/answers")
    assert "the hub does not say which" in said and revision is None
    assert asked == ["c" * 40, "a" * 40, None]


def test_every_hub_set_of_a_suite_or_recipe_that_is_evaluated_on_is_pinned():
    for name in SUITES:
        for benchmark in load_suite(name).benchmarks:
            revision = benchmark.source.dataset_revision
            assert benchmark.source.dataset is None or (len(revision or "") == 40 and int(revision or "", 16))


def test_another_instruction_is_another_evaluation(model, tmp_path):
    run_evaluation(options(model, tmp_path))
    run_evaluation(options(model, tmp_path, instruction="auto"))
    with pytest.raises(ConfigError, match=r"instruction: None, now '\+1\?'"):
        run_evaluation(options(model, tmp_path, instruction="+1?"))


def test_rows_that_repeat_a_problem_are_one_problem(model, tmp_path, capsys):
    rows = [{"question": f"Q:a{i}b2A:", "answer": f"no\n#### {i + 2}"} for i in (1, 2, 3)]
    rows.append({**rows[0], "answer": "other words\n#### 3"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(path=tmp_path / "rows.jsonl", format="gsm8k")
    suite = Suite(max_new_tokens=4, benchmarks=[Benchmark(name="twice", source=source)])
    run_evaluation(options(model, tmp_path, suite=suite))
    assert "twice: 1 rows repeat a problem" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["models"][0]["benchmarks"]["twice"]["problems"] == 3


def test_scores_are_those_of_the_last_command(model, tmp_path, capsys):
    run_evaluation(options(model, tmp_path, limit=5))
    run_evaluation(options(model, tmp_path, limit=3))
    results = json.loads((tmp_path / "results.json").read_text())
    capsys.readouterr()
    run_scores([tmp_path], "json", 1, 1)
    assert json.loads(capsys.readouterr().out) == results  # no remark, no failures between


def test_directories_of_one_name_are_told_apart(model, tmp_path, capsys):
    for name in ("a", "b"):
        run_evaluation(options(model, tmp_path / name, limit=2))
    capsys.readouterr()
    run_scores([tmp_path / "a/tiny", tmp_path / "b/tiny", tmp_path / "a"], "json", 0, 1)
    assert [m["model"] for m in json.loads(capsys.readouterr().out)["models"]] == ["a/tiny", "b/tiny"]


def test_several_models_are_compared_and_shown_again(model, tmp_path, capsys):
    chosen = options(model, tmp_path, subjects=(Subject("one", model), Subject("two", model)), failures=2)
    run_evaluation(chosen)
    said = capsys.readouterr().out
    assert "two - one" in said and "pass@2" in said and "average" in said
    assert said.count("right answer:") == 2 * 2 * 2  # models, benchmarks, two of each
    results = json.loads((tmp_path / "results.json").read_text())
    assert [m["model"] for m in results["models"]] == ["one", "two"]
    # One model twice: the same seeds give the same answers.
    assert results["comparisons"][0]["benchmarks"]["average"] == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    run_scores([tmp_path], "json", 0, 1)
    assert json.loads(capsys.readouterr().out) == results
    run_scores([tmp_path / "two"], "markdown", 0, 1)
    assert "| sums | 12 |" in capsys.readouterr().out
    assert "| sums | 12 |" in (tmp_path / "results.md").read_text()


def test_an_unfinished_evaluation_is_shown_as_far_as_it_is(model, tmp_path, capsys):
    run_evaluation(options(model, tmp_path))
    path = tmp_path / "tiny/records/long.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-4]) + "\n")
    found, samples = read_answers(tmp_path / "tiny")
    assert samples == {"sums": 1, "long": 3} and len(found["sums"]) == 12 and len(found["long"]) == 30
    assert "long: 10 of 12 problems are answered" in capsys.readouterr().out
    path.write_text("\n".join(lines))  # a kill in the middle of the last line: --restart is not called for
    assert len(read_answers(tmp_path / "tiny")[0]["long"]) == 33
    path.write_text("{}\n")
    with pytest.raises(DataError, match=r"long\.jsonl, line 1 is no record"):
        read_answers(tmp_path / "tiny")


def test_a_short_context_cuts_answers_and_says_so(model, tmp_path, capsys):
    run_evaluation(options(model, tmp_path, limit=2, answers=Answers(max_new_tokens=10**6)))
    said = capsys.readouterr().out
    assert "sums: answers are cut at" in said and "not 1000000" in said


def test_a_record_file_keeps_any_text(tmp_path):

    record = Record("s", "0", 0, "p\u2028\n", "g", "half \ud83d of a pair\0", None, "incorrect", "r", 3, True)
    with RecordFile(tmp_path / "r.jsonl") as file:
        file.append([record, record])
    assert read_records(tmp_path / "r.jsonl") == [record, record]


def test_an_output_that_cannot_be_made_is_refused_before_anything_is_loaded(model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("bridge_mcore.evaluation.command._evaluate", lambda *_: pytest.fail("it was begun"))
    for place in (tmp_path / "file" / "e", Path("/proc/nowhere/e"), tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match="nothing can be written there") as error:
            run_evaluation(options(model, place, limit=1))
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("line", ["[" * 100_000, '{"set": 5}', "5", '{"sample": ' + "9" * 5000 + "}", "\\xff"])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "set.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=r"set\.jsonl, line 1 is no record of an evaluation .*--restart") as error:
        read_records(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_benchmark_that_nobody_judged_has_no_accuracy(model, tmp_path, capsys):
    """Its answers are kept, the others are measured, and the command does not end as if all were well."""
    plugin = tmp_path / "mine.py"
    plugin.write_text("def judge(response, gold, prompt):\n    raise OSError('the judge is away')\n")
    tried = options(model, tmp_path / "out", limit=3)
    dead = tried.suite.benchmarks[0].source.model_copy(update={"reward": f"plugin:{plugin}:judge"})
    suite = tried.suite.model_copy(
        update={"benchmarks": [Benchmark(name="dead", source=dead), tried.suite.benchmarks[1]]}
    )
    tried = dataclasses.replace(tried, suite=suite)
    with pytest.raises(
        BridgeError, match=r"tiny, dead: none of its 3 answers could be judged; .*the judge is away"
    ) as end:
        run_evaluation(tried)
    assert end.value.exit_code == 1
    out = capsys.readouterr().out
    assert "not judged" in out and "(of 1)" in out
    assert len(read_records(tmp_path / "out/tiny/records/dead.jsonl")) == 3
    (found,) = json.loads((tmp_path / "out/results.json").read_text())["models"]
    assert [found["benchmarks"][name]["judged"] for name in ("dead", "long")] == [False, True]
    assert found["average"]["value"] == found["benchmarks"]["long"]["accuracy"]["value"]
    hostile = tmp_path / "rows.jsonl"
    hostile.write_text(json.dumps({"problem": "Q:a1b1A:", "answer": "2", "reward": "plugin:timeit:timeit"}) + "\n")
    other = Suite(
        max_new_tokens=4, benchmarks=[*suite.benchmarks, Benchmark(name="h", source=DataSource(path=hostile))]
    )
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: the reward 'plugin:timeit:timeit' is code"):
        run_evaluation(dataclasses.replace(tried, suite=other, output=tmp_path / "other"))
