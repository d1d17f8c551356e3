"""settings.yaml, batch.jsonl and the directories of a replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge_mcore.cli.main import app
from bridge_mcore.config.replay import ReplayOptions, ReplaySample, check_replay, read_batch, read_settings
from bridge_mcore.config.schema import Parallel
from bridge_mcore.errors import BridgeError, ConfigError, DataError
from bridge_mcore.launch.local import replay_arguments
from tests.config.files import RL_ROW, SETTINGS, SFT_ROW, make_case, make_model, write, write_rows


def test_settings_as_the_issue_has_them(tmp_path: Path) -> None:
    text = """
lam: 0.4
alpha: 1e-3
beta: 2e-3
optimizer: {name: adamw, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1, weight_decay_1d: false}
clip_range: [0.2, 0.28]
kl_coefficient: 0.001
kl_estimator: k3
reference: model
loss_aggregation: token_mean
gradient_clip: null
"""
    settings = read_settings(write(tmp_path / "settings.yaml", text))
    assert (settings.lam, settings.alpha, settings.beta) == (0.4, 1e-3, 2e-3)
    assert settings.optimizer.betas == (0.9, 0.95) and settings.optimizer.weight_decay == 0.1
    assert settings.clip_range == (0.2, 0.28) and settings.gradient_clip is None


def test_defaults_of_settings(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path / "settings.yaml", "{lam: 1, alpha: 1, beta: 1}"))
    assert settings.optimizer.name == "adamw" and settings.clip_range == 0.2 and settings.kl_coefficient == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha: 1\nbeta: 1", "'lam' is missing; it must be a number >= 0 and <= 1"),
        (SETTINGS + "lamm: 1", "settings.yaml:5: unknown key 'lamm'; did you mean 'lam'?"),
        (SETTINGS + "learning_rate: 1", "unknown key 'learning_rate'"),
        (SETTINGS.replace("0.5", "1.5"), "lam = 1.5: must be"),
        (SETTINGS.replace("sgd", "adam"), "optimizer.name = adam: must be adamw | sgd"),
        (SETTINGS + "kl_estimator: k1", "kl_estimator = k1: must be k3"),
        (SETTINGS + "clip_range: 0", "clip_range = 0"),
    ],
)
def test_bad_settings(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_settings(write(tmp_path / "settings.yaml", text))
    assert message in str(error.value)


def test_a_batch(tmp_path: Path) -> None:
    rows = [SFT_ROW | {"advantage": None}, "", RL_ROW]
    assert read_batch(write_rows(tmp_path / "b.jsonl", rows), vocabulary=10, context=3) == [
        ReplaySample("sft", [5, 9, 2], 1),
        ReplaySample("rl", [5, 8, 2], 1, 0.7, [-0.3, -1.2]),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "this is not JSON"),
        ("[1]", "expected an object"),
        (SFT_ROW | {"kind": "dpo"}, 'kind = "dpo": must be "sft" or "rl"'),
        (SFT_ROW | {"token": [1]}, "unknown field 'token'; did you mean 'tokens'?"),
        (SFT_ROW | {"tokens": [1]}, "tokens: must be a list of at least 2"),
        (SFT_ROW | {"tokens": [1, -1]}, "tokens: must be"),
        (SFT_ROW | {"tokens": [1, 2.0]}, "tokens: must be"),
        (SFT_ROW | {"tokens": [1, True]}, "tokens: must be"),
        (SFT_ROW | {"tokens": [1, 100]}, "tokens: 100 is outside the model's vocabulary of 100"),
        (SFT_ROW | {"tokens": [1] * 9}, "tokens: 9 are more than the model's context of 8"),
        (SFT_ROW | {"prompt_length": 0}, "prompt_length = 0: must be a whole number from 1 to 2"),
        (SFT_ROW | {"prompt_length": 3}, "prompt_length = 3: must be"),
        ({"kind": "sft", "tokens": [1, 2]}, "prompt_length = null: must be"),
        (SFT_ROW | {"advantage": 1}, "advantage: means nothing in a sample of kind sft"),
        (RL_ROW | {"advantage": None}, "advantage = null: must be a finite number"),
        (RL_ROW | {"advantage": float("nan")}, "advantage = NaN: must be a finite number"),
        (RL_ROW | {"advantage": 10**400}, "must be a finite number"),
        (RL_ROW | {"behaviour_logprobs": [-0.1]}, "behaviour_logprobs: 1 values for 2 response tokens"),
        (RL_ROW | {"behaviour_logprobs": [-0.1, float("-inf")]}, "behaviour_logprobs: must be a list of finite"),
        (RL_ROW | {"behaviour_logprobs": None}, "behaviour_logprobs: must be a list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_batch(write_rows(tmp_path / "b.jsonl", [SFT_ROW, row]), vocabulary=100, context=8)
    assert "b.jsonl, line 2: " in str(error.value) and message in str(error.value)


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="… and 30 more"):
        read_batch(write_rows(tmp_path / "b.jsonl", ["{"] * 50))


def test_empty_and_missing_batches(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        read_batch(write(tmp_path / "b.jsonl", "\n\n"))
    with pytest.raises(DataError, match="cannot be read"):
        read_batch(tmp_path / "none.jsonl")


class TestCase:
    @pytest.fixture
    def problem(self, tmp_path: Path):
        def of(case: Path, **options: Any) -> str:
            with pytest.raises(BridgeError) as error:
                check_replay(ReplayOptions(case, **({"target": tmp_path / "out"} | options)))
            assert error.value.exit_code == 2
            return str(error.value)

        return of

    def test_good(self, tmp_path: Path) -> None:
        check_replay(ReplayOptions(make_case(tmp_path / "case"), tmp_path / "out"))

    @pytest.mark.parametrize(
        ("settings", "rows"),
        [(SETTINGS.replace("0.5", "1"), [RL_ROW]), (SETTINGS.replace("0.5", "0"), [SFT_ROW])],
    )
    def test_one_component_alone(self, tmp_path: Path, settings: str, rows: list[Any]) -> None:
        check_replay(ReplayOptions(make_case(tmp_path / "case", rows, settings), tmp_path / "out"))

    @pytest.mark.parametrize(("rows", "kind"), [([RL_ROW], "sft"), ([SFT_ROW], "rl")])
    def test_an_empty_component(self, problem, tmp_path: Path, rows: list[Any], kind: str) -> None:
        assert f"no {kind} samples" in problem(make_case(tmp_path / "case", rows))

    def test_missing_parts(self, problem, tmp_path: Path) -> None:
        assert "is not a directory; a case holds" in problem(tmp_path / "none")
        make_model(tmp_path / "case" / "model")
        assert "lacks adapter/, batch.jsonl, settings.yaml" in problem(tmp_path / "case")

    def test_target(self, problem, tmp_path: Path) -> None:
        case, out = make_case(tmp_path / "case"), tmp_path / "out"
        out.mkdir()
        check_replay(ReplayOptions(case, out))
        (out / "x").touch()
        assert "is not empty; choose another directory, or say --overwrite" in problem(case)
        check_replay(ReplayOptions(case, out, overwrite=True))
        assert "is a file" in problem(case, target=out / "x")
        for target in (case, tmp_path, case / "model"):
            assert "would replace what IN" in problem(case, target=target, overwrite=True)

    def test_layout(self, problem, tmp_path: Path) -> None:
        case = make_case(tmp_path / "case")
        check_replay(ReplayOptions(case, tmp_path / "out", parallel=Parallel(tensor=2, pipeline=2, sequence=True)))
        assert "parallel.tensor = 4 does not divide" in problem(case, parallel=Parallel(tensor=4))
        check_replay(
            ReplayOptions(case, tmp_path / "out", parallel=Parallel(pipeline=2, virtual_pipeline=2, context=2))
        )
        assert "has no experts: set parallel.expert=1" in problem(case, parallel=Parallel(data=2, expert=2))
        with pytest.raises(ConfigError, match="needs 2 processes, but there are 4"):
            check_replay(ReplayOptions(case, tmp_path / "out", parallel=Parallel(data=2)), world=4)

    def test_a_rank_gets_the_same_options(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What launch.local writes as a command line, cli.replay reads as the same options."""
        found: list[ReplayOptions] = []
        monkeypatch.setattr("bridge_mcore.launch.local.run_replay", found.append)
        layout = Parallel(
            tensor=2, pipeline=2, virtual_pipeline=2, context=2, data=3, sequence=True, distributed_optimizer=False
        )
        for parallel in (layout, Parallel(data=1)):
            options = ReplayOptions(make_case(tmp_path / "c"), tmp_path / "o", "bfloat16", "cuda", 3, parallel, True)
            app(replay_arguments(options), standalone_mode=False)
            assert found.pop() == options

    def test_all_problems_of_settings_and_files_together(self, problem, tmp_path: Path) -> None:
        case = make_case(tmp_path / "case", settings="lam: 2\n")
        (case / "model" / "model.safetensors").unlink()
        (case / "auxiliary").mkdir()
        text = problem(case)
        assert all(part in text for part in ("lam = 2", "model = ", "auxiliary = "))
