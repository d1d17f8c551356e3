"""What an example is known to end with, and the digest by which a run knows that it is that example."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from bridge_mcore.config.expected import settings_digest
from bridge_mcore.config.load import dump_config, load_config
from bridge_mcore.errors import ConfigError

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
EXPECTED = "expected={accuracy: [0.8, 0.9], measured: 3 runs, settings: 0123456789ab}"


def digest(*overrides: str) -> str:
    return settings_digest(load_config(QUICKSTART, [*overrides]))


def test_the_quickstart_is_what_was_measured():
    """Fails when a setting of the example changes: measure its range again (docs/quickstart.md says how)."""
    expected = load_config(QUICKSTART, []).expected
    assert expected is not None and expected.settings == digest()
    low, high = expected.accuracy
    assert 0.85 < low < high <= 1


def test_seed_and_place_do_not_count(seed):
    rng = random.Random(seed)
    beside = [
        f"run.seed={rng.randrange(10**6)}", "run.directory=runs/elsewhere", "run.threads=2", "run.resume=auto",
        f"checkpoint.every={rng.randrange(50)}", "monitoring.figure=false", f"evaluation.every={rng.randrange(9)}",
        "evaluation.before=false", "evaluation.samples=0", "slots.theta_hat.offload=pinned_cpu", "expected=null",
    ]  # fmt: skip
    assert digest(*rng.sample(beside, 4)) == digest(*beside) == digest()


@pytest.mark.parametrize(
    "change",
    [
        "training.steps=39", "training.prompts_per_step=16", "optimizer.alpha=2e-4", "method.name=sft",
        "model.generated.warm_start.steps=999", "rollout.max_new_tokens=39", "rollout.engine=sglang", "data.rl.seed=12",
        "data.evaluation.0.size=255", "data.evaluation.0.difficulty=[4, 7]", "evaluation.max_new_tokens=32",
        "method.lam=0.4", "adapter.rank=8", "device=cuda", "parallel.tensor=2", "model.dtype=bfloat16",
    ],
)  # fmt: skip
def test_every_other_setting_counts(change):
    assert digest(change) != digest()


def test_the_configuration_that_a_run_writes_is_the_same(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(load_config(QUICKSTART, ["run.seed=7"])))
    again = load_config(path, [])
    assert settings_digest(again) == digest() and again.expected == load_config(QUICKSTART, []).expected


def test_one_spelling_of_a_number_is_as_good_as_another():
    assert digest("optimizer.alpha=0.0001", "optimizer.betas=[0.90, 0.99]", "objective.kl_coefficient=0.0") == digest()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("expected.accuracy=[0.9, 0.8]", "must be [lowest, highest], the lowest first"),
        ("expected.accuracy=[0.9, 96]", "expected.accuracy"),
        ("expected.accuracy=0.9", "[lowest, highest], each from 0 to 1"),
        ("expected.settings=0123", "12 hexadecimal digits"),
        ("expected.settings=XYZ3456789ab", "12 hexadecimal digits"),
        ("expected.runs=20", "unknown key 'expected.runs'"),
        ("expected={accuracy: [0.8, 0.9]}", "expected.measured"),
    ],
)
def test_what_is_malformed_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(QUICKSTART, [EXPECTED, wrong])
