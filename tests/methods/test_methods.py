"""Pass lists say what the paper says."""

from __future__ import annotations

import pytest

from bridge_mcore.config.schema import METHODS, Config, Schedule
from bridge_mcore.methods import make_method
from bridge_mcore.methods.base import RL, SFT, THETA, THETA_HAT, Pass, W
from bridge_mcore.methods.schedules import rate_factor, schedule


def method(name: str, **more):
    config = Config.model_validate({"method": {"name": name, **more}, "training": {"steps": 10}})
    return make_method(config)


def test_bridge_is_algorithm_2():
    first, second = method("bridge", lam=0.3).passes(0)
    assert first == Pass(THETA_HAT, {RL: 1.0}, into={THETA_HAT: 1.0, W: -0.3}, update=(THETA_HAT,))
    assert second == Pass(THETA, {SFT: 0.7, RL: 0.3}, into={THETA: 1.0, W: 1.0}, update=(THETA, W))


def test_lookahead_starts_from_theta_every_time():
    m = method("bridge")
    m.config.auxiliary.mode = "lookahead"
    ahead, there, joint = m.passes(4)
    assert ahead.start_from == THETA and ahead.update == (THETA_HAT,)
    assert there.into == {W: -0.5} and there.update == ()
    assert joint.slot == THETA


def test_the_baselines():
    assert [p.objective for p in method("sft").passes(0)] == [{SFT: 1.0}]
    assert [p.objective for p in method("rl-zero").passes(0)] == [{RL: 1.0}]
    cold = method("cold_start", sft_steps=4)
    assert [next(iter(cold.components(s))) for s in range(6)] == [SFT] * 4 + [RL] * 2
    for name in METHODS:
        assert method(name).uses_adapter == (name == "bridge")


def test_a_component_without_weight_needs_no_data():
    assert method("bridge", lam=1.0).components(0) == {RL}
    assert method("bridge", lam=0.5).components(0) == {SFT, RL}


def test_schedules():
    assert [schedule(0.4, 10)(s) for s in (0, 9)] == [0.4, 0.4]
    linear = schedule(Schedule(kind="linear", start=0.2, end=0.8), 11)
    assert [linear(s) for s in (0, 5, 10, 20)] == pytest.approx([0.2, 0.5, 0.8, 0.8])
    cosine = schedule(Schedule(kind="cosine", start=1.0, end=0.0, steps=5), 100)
    assert [cosine(s) for s in (0, 2, 4, 50)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    warm = rate_factor("linear", 2, 6)
    assert [warm(s) for s in range(6)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
