"""`data prepare` from files to files: coverage, filters, limits, determinism, and what training then reads."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.card import card_of
from bridge_mcore.data.prepare.output import write_prepared
from bridge_mcore.data.prepare.recipe import built_in, from_hub, load_recipe, recipe_path
from bridge_mcore.data.problem import ANY_OF
from bridge_mcore.data.problems import load_problems
from bridge_mcore.data.rows import last_boxed
from bridge_mcore.errors import BridgeError, ConfigError, DataError
from tests.data import deepmath
from tests.data.test_problems import write

THINGS = ["apples", "bricks", "candles", "drums", "engines", "flags", "gloves", "hammers"]


def problems(rng: random.Random, number: int) -> list[tuple[str, str]]:
    """Different problems of some thirty words, with their answers."""
    found: dict[str, str] = {}
    while len(found) < number:
        (a, b, c), (one, two) = rng.sample(range(2, 999), 3), rng.sample(THINGS, 2)
        question = (
            f"A merchant buys $\\frac{{{a}}}{{{b}}}$ crates of {one} and then {c} crates of {two} from a warehouse on "
            f"the coast. If every crate weighs the same, how many crates of {one} and {two} did he buy altogether?"
        )
        found[question] = f"\\frac{{{a + b * c}}}{{{b}}}"
    return list(found.items())


def recipe_file(folder: Path, **keys: Any) -> str:
    import yaml

    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"output": str(folder / "out"), **keys}))
    return str(path)


def run(recipe: str, *overrides: str, force: bool = False) -> tuple[dict[str, Any], Path]:
    loaded = load_recipe(recipe, overrides)
    return write_prepared(loaded, force, lambda items, total, text: items), loaded.output


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def paired(tmp_path, seed) -> dict[str, Any]:
    """40 prompts in two overlapping sources, and DeepMath rows of every kind for 35 of them, as Parquet."""
    rng = random.Random(seed)
    made = problems(rng, 40)
    first = [{"question": q, "answer": a, "id": str(i), "source": "x"} for i, (q, a) in enumerate(made[:25])]
    second = [{"prompt": q, "answer": a} for q, a in made[15:]]
    write(tmp_path / "first.json", first)
    write(tmp_path / "second.jsonl", second)
    rows = list(deepmath.rows(made[:35], rng))
    (tmp_path / "deepmath").mkdir()
    write(tmp_path / "deepmath" / "train-0.parquet", [row for _, _, row in rows[:20]])
    write(tmp_path / "deepmath" / "train-1.parquet", [row for _, _, row in rows[20:]])
    recipe = recipe_file(
        tmp_path,
        prompts=[
            {"name": "first", "path": str(tmp_path / "first.json")},
            {"name": "second", "path": str(tmp_path / "second.jsonl")},
        ],
        traces=[{"name": "deepmath", "path": str(tmp_path / "deepmath"), "difficulty_field": "difficulty"}],
        pairing={"workers": 1},
    )
    return {"made": made, "rows": rows, "recipe": recipe, "folder": tmp_path}


def test_coverage_by_tier(paired):
    card, out = run(paired["recipe"])
    made, by_question = paired["made"], {}
    for row in lines(out / "train_sft.jsonl"):
        by_question[row["prompt"]] = row
        assert last_boxed(row["trace"]) == row["answer"]
        assert row["trace_source"] == "deepmath" and "deepmath" in row["trace_place"]
    tiers = {"exact": "exact", "normalised": "normalised", "fuzzy": "fuzzy"}
    for kind, number, _ in paired["rows"]:
        row = by_question.get(made[number][0])
        # Another problem's trace and wrong answers are never taken, the rest always.
        assert (row["tier"] if row else None) == tiers.get(kind), (kind, made[number])
    assert len(by_question) == 21
    assert [row["prompt"] for row in lines(out / "train_rl.jsonl")] == [q for q, _ in made]  # unpaired ones stay
    assert card["coverage"]["first"]["prompts"] == 25 and card["coverage"]["second"]["prompts"] == 25
    assert card["coverage"]["first"]["matched: exact"] == 10  # five of them wrong
    assert card["coverage"]["first"]["trace: exact"] == 5
    assert card["counts"]["prompts"]["second"] == {"kept": 15, "repeated": 10}
    assert card["counts"]["trace_rows"]["deepmath"]["no such prompt"] == 7
    assert sum(card["counts"]["traces"].values()) == 3 * 28
    report = (out / "report.md").read_text()
    assert "| first  |      25 |    10 |          5 |     5 |" in report
    assert (out / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_training_reads_it(paired):
    _, out = run(paired["recipe"])
    rl = load_problems(DataSource(path=out / "train_rl.jsonl"))
    sft = load_problems(DataSource(path=out / "train_sft.jsonl"))
    assert [(p.prompt, p.answer) for p in rl] == paired["made"]
    assert all(p.trace is None and p.reward == "math" for p in rl) and all(p.trace and p.finished for p in sft)
    for file, found in (("train_rl.jsonl", rl), ("train_sft.jsonl", sft)):
        assert [row["id"] for row in lines(out / file)] == [problem.id for problem in found]
    assert {p.id for p in sft} < {p.id for p in rl}


def test_the_same_input_gives_the_same_bytes(paired):
    _, out = run(paired["recipe"])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert not [name for name in before if name.startswith(".")]
    with pytest.raises(DataError, match="--force"):
        run(paired["recipe"])
    run(paired["recipe"], force=True)
    for name, content in before.items():
        if name not in ("card.json", "report.md"):  # they have the date
            assert (out / name).read_bytes() == content, name


def test_keep_policies(paired):
    folder = paired["folder"]
    question, answer = paired["made"][0]
    right = f"so \\boxed{{{answer}}}"
    row = {"question": question, "r1_solution_1": "no \\boxed{0}", "r1_solution_2": f"long {'x' * 50} {right}"}
    near = {"question": deepmath.respelt(question, random.Random(0)), "r1_solution_1": "", "r1_solution_2": None}
    write(folder / "few.jsonl", [near | {"r1_solution_3": f"near {right}"}, row | {"r1_solution_3": right}])
    for keep, wanted in (("first", [2]), ("shortest", [3]), ("all", [2, 3, 0])):
        run(paired["recipe"], f"traces.path={folder / 'few.jsonl'}", f"pairing.keep={keep}", force=True)
        found = [r["trace"] for r in lines(folder / "out" / "train_sft.jsonl")]
        texts = {0: f"near {right}", 2: row["r1_solution_2"], 3: right}
        assert found == [texts[number] for number in wanted]


def test_thinking(paired):
    folder = paired["folder"]
    for policy, start in (("keep", "Okay"), ("open", "<think>\nOkay"), ("strip", "**Final")):
        run(paired["recipe"], f"traces.thinking={policy}", force=True)
        assert all(row["trace"].startswith(start) for row in lines(folder / "out" / "train_sft.jsonl"))


def test_difficulty_of_prompts_and_of_traces(tmp_path, paired):
    made = paired["made"][:4]
    levels = ["Level 5", 6, -1, None]
    write(
        tmp_path / "levels.jsonl",
        [{"problem": q, "answer": a, "level": level} for (q, a), level in zip(made, levels, strict=True)],
    )
    recipe = recipe_file(tmp_path, prompts=[{"path": str(tmp_path / "levels.jsonl"), "difficulty_field": "level"}])
    for unknown, kept in (("keep", [1, 2, 3]), ("drop", [1])):
        run(recipe, "filters.difficulty=[6, 9]", f"filters.unknown_difficulty={unknown}", force=True)
        found = [row["prompt"] for row in lines(tmp_path / "out" / "train_rl.jsonl")]
        assert found == [made[number][0] for number in kept]
    hard = [
        deepmath.row(q, a, random.Random(0)) | {"difficulty": d} for (q, a), d in zip(made, [5, 8, -1], strict=False)
    ]
    write(tmp_path / "hard.jsonl", hard)
    trace = f"{{path: {tmp_path / 'hard.jsonl'}, difficulty_field: difficulty}}"
    _card, out = run(recipe, f"traces=[{trace}]", "filters.difficulty=[6, 9]", force=True)
    assert [row["prompt"] for row in lines(out / "train_sft.jsonl")] == [made[1][0], made[2][0]]
    left = lines(out / "dropped.jsonl")
    assert [(row["stage"], row["reason"]) for row in left] == [("difficulty", "5, wanted 6 to 9")]


def test_lengths_limit_and_cut_in_characters(tmp_path, seed):
    made = problems(random.Random(seed), 3)
    traces = ["x" * n + f" \\boxed{{{a}}}" for n, (_, a) in zip((10, 500, 900), made, strict=True)]
    rows = [{"problem": q, "answer": a, "solution": t} for (q, a), t in zip(made, traces, strict=True)]
    write(tmp_path / "a.jsonl", rows)
    recipe = recipe_file(tmp_path, prompts=[{"path": str(tmp_path / "a.jsonl")}])
    card, out = run(recipe, "limit.length=600")
    assert card["counts"]["traces"] == {"verified": 3, "over the limit, dropped": 2}
    assert len(lines(out / "train_sft.jsonl")) == 1 and len(lines(out / "train_rl.jsonl")) == 3
    card, out = run(recipe, "limit.length=600", "limit.policy=cut", force=True)
    assert card["counts"]["cut_traces"] == 2
    rows = lines(out / "train_sft.jsonl")
    assert [row.get("finished") for row in rows] == [None, False, False]
    assert [len(row["prompt"]) + len(row["trace"]) for row in rows[1:]] == [600, 600]
    for problem, row in zip(load_problems(DataSource(path=out / "train_sft.jsonl")), rows, strict=True):
        assert problem.trace == row["trace"] and problem.finished == ("finished" not in row)  # no box is added
    card, out = run(recipe, "filters.trace_length=[0, 100]", "filters.prompt_length=[0, 10000]", force=True)
    assert card["counts"]["sft_rows"] == 1 and card["counts"]["traces"]["outside trace_length"] == 2
    with pytest.raises(DataError, match=r"no prompt is left.*prompt length"):
        run(recipe, "filters.prompt_length=[0, 10]", force=True)
    assert len(lines(out / "train_rl.jsonl")) == 3  # what was there stays


def test_limit_in_tokens_is_what_training_counts(tmp_path, seed):
    from bridge_mcore.config.schema import Data
    from bridge_mcore.data.pairs import encode_traces
    from bridge_mcore.data.tasks import stream_problems
    from bridge_mcore.data.tokenizer import task_tokenizer

    task_tokenizer("running_sums").save_pretrained(tmp_path / "tokenizer")
    found = {p.prompt: p for p in (next(stream_problems(seed + i, "train", (3, 9))) for i in range(30))}
    write(tmp_path / "a.jsonl", [{"prompt": p.prompt, "answer": p.answer, "trace": p.trace} for p in found.values()])
    recipe = recipe_file(tmp_path, prompts=[{"path": str(tmp_path / "a.jsonl")}], tokenizer=str(tmp_path / "tokenizer"))
    limit = random.Random(seed).randint(24, 34)
    for policy in ("drop", "cut"):
        card, out = run(recipe, f"limit.length={limit}", f"limit.policy={policy}", force=True)
        assert card["statistics"]["unit"] == "tokens"
        if not (out / "train_sft.jsonl").exists():
            continue
        kept = load_problems(DataSource(path=out / "train_sft.jsonl"))
        tokenizer = task_tokenizer("running_sums")
        encoded = encode_traces(kept, tokenizer, Data(template="plain"), limit)  # none is over it
        for one in encoded:
            ends = one.tokens[-1] == tokenizer.eos_token_id
            assert one.problem is not None and ends == one.problem.finished
            assert one.problem.finished or len(one.tokens) == limit


def test_decontamination(paired):
    folder = paired["folder"]
    held_out = [paired["made"][3][0].replace(" ", "\n"), f"Think hard. {paired['made'][20][0]}", "What else?"]
    write(folder / "test.jsonl", [{"problem": p, "answer": "1"} for p in held_out])
    source = f"decontaminate.sources=[{{name: bench, path: {folder / 'test.jsonl'}}}]"
    card, out = run(paired["recipe"], source)
    contacts = lines(out / "contamination.jsonl")
    assert {(c["prompt"], c["rule"]) for c in contacts} >= {(paired["made"][3][0], "exact")}
    left = {c["prompt"] for c in contacts}
    assert {paired["made"][3][0], paired["made"][20][0]} <= left
    assert not left & {row["prompt"] for name in ("rl", "sft") for row in lines(out / f"train_{name}.jsonl")}
    assert "bench (3)" in (out / "report.md").read_text()
    assert card["decontamination"]["matches"][0]["evaluation"] == "bench"
    card, out = run(paired["recipe"], source, "decontaminate.policy=report", force=True)
    assert len(lines(out / "train_rl.jsonl")) == 40 and card["decontamination"]["matches"]


def test_openr1_messages_and_nested_answer(tmp_path, seed):
    made = problems(random.Random(seed), 4)
    rows = [
        {
            "data_source": "openr1",
            "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": f"{q}\n\nBox it."}],
            "target": [{"role": "assistant", "content": f"<think>\nso\n</think>\n\\boxed{{{a if i else '0'}}}"}],
            "reward_model": {"ground_truth": a, "style": "rule"},
            "extra_info": {"index": i, "split": "default"},
        }
        for i, (q, a) in enumerate(made)
    ]
    (tmp_path / "openr1").mkdir()
    write(tmp_path / "openr1" / "train.parquet", [*rows, rows[1] | {"prompt": rows[1]["prompt"] * 2}])
    overrides = ["decontaminate.sources=[]", f"files={tmp_path}", f"output={tmp_path / 'out'}"]
    card, out = run("openr1", *overrides, "prompts.prompt_suffix=Box it.", "prompts.system_messages=drop")
    assert [(row["prompt"], row["answer"]) for row in lines(out / "train_rl.jsonl")] == made
    assert [row["prompt"] for row in lines(out / "train_sft.jsonl")] == [q for q, _ in made[1:]]  # one box is wrong
    assert card["sources"][0]["done"] == {"system_dropped": 4}
    card, out = run("openr1", *overrides, "prompts.prompt_suffix=Box it.", force=True)
    kept = load_problems(DataSource(path=out / "train_sft.jsonl"))
    assert [(p.prompt, p.answer, p.system) for p in kept] == [(q, a, "Think.") for q, a in made[1:]]
    assert [row["id"] for row in lines(out / "train_sft.jsonl")] == [p.id for p in kept]
    assert card["counts"]["prompts"]["openr1"] == {"kept": 4, "unusable row": 1}
    assert "2 messages of the user" in (out / "dropped.jsonl").read_text()


def test_gsm8k_and_past_years(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    rows = [
        {"question": f"{n} pens and {n} more?", "answer": f"{n}+{n}=<<{n}+{n}={n + n}>>{n + n}\n#### {n + n}"}
        for n in range(1, 6)
    ]
    write(tmp_path / "gsm8k" / "train.jsonl", rows)
    write(tmp_path / "gsm8k" / "test.jsonl", [rows[0]])
    card, out = run("gsm8k", f"files={tmp_path}", f"output={tmp_path / 'a'}")
    assert len(lines(out / "train_rl.jsonl")) == len(lines(out / "train_sft.jsonl")) == 4
    assert lines(out / "train_sft.jsonl")[0]["tier"] == "own"
    years = [{"problem": f"In {y}, what is $x$?", "answer": "1", "year": y} for y in (1999, 2024, 2023)]
    write(tmp_path / "aime.json", years)
    card, out = run(
        "aime", f"prompts.path={tmp_path / 'aime.json'}", "decontaminate.sources=[]", f"output={tmp_path}/b"
    )
    assert [row["prompt"][3:7] for row in lines(out / "train_rl.jsonl")] == ["1999", "2023"]
    assert not (out / "train_sft.jsonl").exists()
    assert card["counts"]["prompts"]["aime"] == {"kept": 2, "outside only_range": 1}


def test_own_traces_without_a_box_do_not_verify_themselves(tmp_path):
    rows = [{"problem": "Why, and what is it?", "answer": "5", "solution": "It is 5."}]
    write(tmp_path / "a.jsonl", rows)
    card, _ = run(recipe_file(tmp_path, prompts=[{"path": str(tmp_path / "a.jsonl")}]))
    assert card["counts"]["sft_rows"] == 0 and card["counts"]["traces"] == {"no box": 1}


def test_sample_is_a_part_chosen_by_the_seed(paired):
    def kept(*overrides: str) -> list[str]:
        _card, out = run(paired["recipe"], "traces=[]", *overrides, force=True)
        return [row["id"] for row in lines(out / "train_rl.jsonl")]

    half = kept("sample=0.5")
    assert half == kept("sample=0.5") and 5 < len(half) < 35
    assert half != kept("sample=0.5", "seed=1") and set(half) <= set(kept("sample=0.8"))


def test_prompts_in_a_template_are_left_out(tmp_path):
    rows = [{"prompt": f"<|im_start|>user\nwhat is {n}<|im_end|>", "answer": "1"} for n in range(2)]
    write(tmp_path / "a.jsonl", [*rows, {"prompt": "What is it?", "answer": "1"}])
    card, _ = run(recipe_file(tmp_path, prompts=[{"name": "a", "path": str(tmp_path / "a.jsonl")}]))
    assert card["counts"]["prompts"]["a"] == {"inside a chat template": 2, "kept": 1}


def test_built_in_recipes_are_sound(tmp_path):
    assert {"paper", "limr", "math", "gsm8k", "aime", "openr1"} <= set(built_in())
    for name in built_in():
        assert recipe_path(name).read_text().startswith("# ")
    with pytest.raises(ConfigError, match=r"^math: .* by hand: .*math\.8k\.json.*DIR/limr/math\.8k\.json.*files=DIR"):
        load_recipe("paper")
    (tmp_path / "limr").mkdir()
    with pytest.raises(ConfigError, match=rf"^math: .* Put it at {tmp_path}/limr/math\.8k\.json; what else"):
        load_recipe("paper", [f"files={tmp_path}"])
    write(tmp_path / "limr" / "math.8k.json", [{"prompt": "q", "answer": "1"}])
    loaded = load_recipe("paper", [f"files={tmp_path}"])  # with the one file that no hub has, the rest is the hub's
    assert [line.split(":")[0].removeprefix("· ") for line in from_hub(loaded)] == [
        "limr", "deepmath", "math500", "aime24", "amc23", "minerva_math", "olympiadbench"
    ]  # fmt: skip
    assert not from_hub(load_recipe("gsm8k"))  # nothing was to lie anywhere else
    with pytest.raises(ConfigError, match=r"files = .*nowhere is no directory"):
        load_recipe("gsm8k", [f"files={tmp_path / 'nowhere'}"])
    for name in ("limr", "gsm8k", "openr1", "aime_hub"):
        assert load_recipe(name).prompts[0].dataset


def test_a_recipe_takes_the_words_of_a_data_source(tmp_path):
    """As in a run's configuration; a trace is checked by its box where its reward reads boxes."""
    rows = [{"q": f"{n}?", "a": [str(n), f"{n}.0"], "t": f"Answer: {n}"} for n in range(3)]
    write(tmp_path / "a.jsonl", rows)
    keys = {"prompt_field": "q", "answer_field": "a", "trace_field": "t", "golds": "any"}
    source = {"name": "a", "path": str(tmp_path / "a.jsonl"), **keys}
    card, out = run(recipe_file(tmp_path, prompts=[source | {"reward": "plugin:mine.py:judge"}]))
    found = load_problems(DataSource(path=out / "train_sft.jsonl", reward="plugin:mine.py:judge"))
    assert [(p.prompt, p.answer, p.trace) for p in found] == [
        (f"{n}?", f"{n}{ANY_OF}{n}.0", f"Answer: {n}") for n in range(3)
    ]
    assert card["counts"]["traces"] == {"not verified, reward plugin": 3}
    assert card["sources"][0]["done"] == {"any_listed_golds": 3}
    card, out = run(recipe_file(tmp_path, prompts=[source]), f"output={tmp_path / 'b'}")
    assert card["counts"]["traces"] == {"no box": 3}
    with pytest.raises(ConfigError, match="trace_field and trace_fields say the same"):
        load_recipe(recipe_file(tmp_path, prompts=[source | {"trace_fields": ["t"]}]))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["pairing.treshold=0.9"], "unknown key 'pairing.treshold'; did you mean 'pairing.threshold'"),
        (["pairing.threshold=0.3"], "must be a number > 0.5"),
        (["prompts.path=x"], r"say which: prompts.0 \(first\), prompts.1 \(second\)"),
        (["prompts.0.path=none.jsonl"], "prompts.0: none.jsonl does not exist"),
        (["prompts=[]"], "prompts is empty"),
        (["traces.0.only_field=year"], "only_field and only_range go together"),
        (["filters.difficulty=[9, 1]"], "smallest, largest"),
        (["tokenizer=/nonexistent"], "holds no tokenizer_config.json"),
        (["prompts.1.name=first"], "two sources are called first"),
        (["prompts.0.answer_field=answr"], r"no column 'answr' .*did you mean 'answer'"),
        (["traces.prompt_field=q"], "its prompt .*nothing; mend the row, or set traces.0.bad_rows=skip"),
    ],
)
def test_mistakes_are_one_message(paired, overrides, says):
    with pytest.raises(BridgeError, match=says):
        run(paired["recipe"], *overrides)
    assert not (paired["folder"] / "out").exists()


def test_a_missing_recipe_and_a_foreign_directory(paired):
    with pytest.raises(ConfigError, match="no recipe 'papper'; did you mean 'paper'"):
        load_recipe("papper")
    (paired["folder"] / "mine").mkdir()
    (paired["folder"] / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="holds something else"):
        run(paired["recipe"], f"output={paired['folder'] / 'mine'}", force=True)


def test_the_hub(tmp_path, monkeypatch, seed):
    import datasets
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    made = problems(random.Random(seed), 3)
    asked = []

    def load_dataset(name, config, *, split, revision, streaming=False):
        asked.append((name, revision, streaming))
        if name == "a/prompts":
            return datasets.Dataset.from_list([{"question": q, "answer": a} for q, a in made])
        return iter([deepmath.row(q, a, random.Random(0)) for q, a in made])

    class Info:
        sha = commit

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision=None: Info)
    recipe = recipe_file(
        tmp_path, prompts=[{"dataset": "a/prompts"}], traces=[{"dataset": "a/traces", "dataset_revision": "f" * 40}]
    )
    card, _ = run(recipe)
    assert asked == [("a/prompts", commit, False), ("a/traces", "f" * 40, True)]
    assert [source["commit"] for source in card["sources"]] == [commit, "f" * 40]
    assert card["counts"]["sft_rows"] == 3

    def offline(self, name, revision=None):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    with pytest.raises(DataError, match=r"a/prompts: the hub does not say.*ConnectionError.*give `path`"):
        run(recipe, force=True)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_streams_with_bounded_memory(tmp_path, seed, suffix):
    """A trace source of 120 MB goes past an index in a process that grows by less than half of that."""
    import pyarrow
    import pyarrow.parquet

    rng = random.Random(seed)
    made = problems(rng, 20)
    write(tmp_path / "a.jsonl", [{"problem": q, "answer": a} for q, a in made])
    padding = " ".join(str(rng.random()) for _ in range(4000))
    rows = [deepmath.row(q + " Twice.", a, rng) | {"r1_solution_2": padding} for q, a in made]
    last = deepmath.row(*made[7], rng)
    traces = tmp_path / f"traces{suffix}"
    if suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
        traces.write_text(text * 80 + json.dumps(last) + "\n")
        assert traces.stat().st_size > 115e6
    else:
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.parquet.ParquetWriter(traces, table.schema, use_dictionary=False, compression="none") as file:
            for _ in range(80):
                file.write_table(table)
            file.write_table(pyarrow.Table.from_pylist([last]))
        assert traces.stat().st_size > 115e6
    recipe = recipe_file(tmp_path, prompts=[{"path": str(tmp_path / "a.jsonl")}], traces=[{"path": str(traces)}])
    code = (
        "import resource, sys\n"
        "import bridge_mcore.checkpoint.atomic, matplotlib.figure, matplotlib.backends.backend_agg\n"
        "from bridge_mcore.data.prepare.output import write_prepared\n"
        "from bridge_mcore.data.prepare.recipe import load_recipe\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        f"card = write_prepared(load_recipe({recipe!r}), False, lambda items, total, text: items)\n"
        "print(card['counts']['sft_rows'], peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kept, grown = map(int, done.stdout.split())
    assert kept == 1 and grown < 58, done.stdout


def test_the_command(paired, capsys):
    from bridge_mcore.cli.main import main

    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ending:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return int(ending.value.code or 0), said.out, said.err

    code, out, _ = command("data", "prepare")
    assert code == 0 and "paper " in out and "openr1 " in out
    code, out, _ = command("data", "prepare", paired["recipe"], "pairing.keep=all")
    assert code == 0 and "| first " in out and "40 prompts" in out
    code, out, err = command("data", "prepare", paired["recipe"], "--force", "--json")
    assert code == 0 and json.loads(out)["counts"]["rl_rows"] == 40
    code, out, err = command("data", "prepare", paired["recipe"])
    assert code == 2 and err.startswith("error: ") and "--force" in err and "Traceback" not in err
    code, out, _ = command("data", "stats", paired["folder"] / "out" / "train_sft.jsonl")
    assert code == 0 and "21 rows" in out and "unchanged since" in out
    code, out, _ = command("data", "prepare", "--keys")
    assert code == 0 and "pairing.threshold = 0.7" in out
    assert card_of(paired["folder"] / "out" / "train_sft.jsonl")
