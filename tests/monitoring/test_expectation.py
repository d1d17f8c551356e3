"""The line with which a run compares its accuracy with the range that was measured."""

from __future__ import annotations

import pytest

from bridge_mcore.config.expected import Expected, settings_digest
from bridge_mcore.config.schema import Config
from bridge_mcore.monitoring.expectation import expectation


def expecting(settings: str | None = None) -> Config:
    config = Config.model_validate({"model": {"generated": {}}, "training": {"steps": 7}})
    settings = settings or settings_digest(config)
    config.expected = Expected(accuracy=(0.864, 0.957), measured="20 runs (10 seeds)", settings=settings)
    return config


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [
        (0.914, "accuracy 91.4 %: within the range 86.4 to 95.7 % measured over 20 runs (10 seeds)"),
        (0.864, "accuracy 86.4 %: within the range"),
        (0.957, "accuracy 95.7 %: within the range"),
        (0.99, "accuracy 99.0 %: above the range 86.4 to 95.7 % measured over 20 runs (10 seeds)"),
        # 95 % intervals of 256 answers: 0.84 reaches 0.8795, 0.80 reaches 0.844.
        (
            0.84,
            "measured over 20 runs (10 seeds), but by no more than 256 problems leave to chance",
        ),
        (0.80, "measured over 20 runs (10 seeds): something differs here; run `bridge-mcore selftest`"),
        (0.0, "accuracy 0.0 %: below the range"),
    ],
)
def test_the_line(accuracy, verdict):
    line = expectation(expecting(), accuracy, 256)
    assert line is not None and verdict in line and "\n" not in line


def test_nothing_is_said_where_nothing_can_be_compared():
    config = expecting()
    assert expectation(config, None, 256) is None  # not evaluated
    assert expectation(config, 0.9, 0) is None
    assert expectation(expecting("0123456789ab"), 0.9, 256) is None  # other settings were measured
    config.training.steps = 8
    assert expectation(config, 0.9, 256) is None
    assert expectation(Config(), 0.9, 256) is None
