"""Layouts against the model, the number of processes and the batch; each message names a mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge_mcore.config.checks import check_config
from bridge_mcore.config.load import load_config
from bridge_mcore.config.model_files import Sizes, directory_sizes
from bridge_mcore.config.parallel import parallel_problems, share_problems, world_problems, world_size
from bridge_mcore.config.schema import Config, Parallel, Training
from bridge_mcore.errors import ConfigError
from tests.config.files import make_model, write

DENSE = Sizes("m", layers=4, heads=6, kv_heads=2, intermediate_size=96, context=256)
MOE = Sizes("m", layers=4, heads=6, kv_heads=2, intermediate_size=97, context=256, experts=8, dense_layers=0)


@pytest.mark.parametrize(
    ("layout", "sizes"),
    [
        ({"tensor": 2, "sequence": True, "pipeline": 2, "virtual_pipeline": 2, "context": 2, "data": 2}, DENSE),
        ({"tensor": 2}, DENSE),
        ({"expert": 4, "data": 4}, MOE),
        ({"expert": 8, "tensor": 2, "sequence": True, "context": 2, "data": 2, "pipeline": 2}, MOE),
        ({"tensor": 2, "sequence": True}, MOE),  # an expert's matrices are not split: 97 need not be even
        ({"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}, DENSE),
        ({"distributed_optimizer": False, "overlap_grad_reduce": True}, DENSE),
        ({"expert": 2, "data": 2, "tensor": 3, "pipeline": 3}, Sizes("the model")),  # nothing is known
    ],
)
def test_good_layouts(layout: dict[str, Any], sizes: Sizes) -> None:
    parallel = Parallel(**layout)
    assert [*parallel_problems(parallel, sizes), *world_problems(parallel, world_size(parallel))] == []


@pytest.mark.parametrize(
    ("layout", "sizes", "message"),
    [
        ({"tensor": 3}, DENSE, "parallel.tensor = 3 does not divide the key-value heads of m (2); possible: 1, 2"),
        (
            {"tensor": 5, "sequence": True},
            MOE,
            "parallel.tensor = 5 does not divide the attention heads of m (6); possible: 1, 2",
        ),
        ({"pipeline": 3}, DENSE, "parallel.pipeline = 3 does not divide the layers of m (4); possible: 1, 2, 4"),
        ({"pipeline": 2, "virtual_pipeline": 3}, DENSE, "are 2); possible: 1, 2"),
        ({"virtual_pipeline": 2}, DENSE, "whose stages are interleaved: set parallel.pipeline, or parallel.virtual"),
        ({"sequence": True}, DENSE, "needs parallel.tensor > 1, whose processes share the sequence: set one of them"),
        ({"tensor": 2}, MOE, "needs sequence parallelism (otherwise every tensor rank would send the same tokens"),
        ({"expert": 2}, DENSE, "parallel.expert = 2, but m has no experts: set parallel.expert=1"),
        ({"expert": 3}, MOE, "does not divide the experts of m (8); possible: 1, 2, 4, 8"),
        ({"overlap_grad_reduce": True, "distributed_optimizer": False, "overlap_param_gather": True}, DENSE,
         "needs parallel.distributed_optimizer=true: set it"),
        ({"overlap_param_gather": True}, DENSE, "needs parallel.overlap_grad_reduce=true: set it"),
    ],
)  # fmt: skip
def test_a_layout_that_does_not_fit_the_model(layout: dict[str, Any], sizes: Sizes, message: str) -> None:
    problems = list(parallel_problems(Parallel(**layout), sizes))
    assert any(message in problem for problem in problems)


@pytest.mark.parametrize(
    ("layout", "world", "message"),
    [
        ({"tensor": 2, "pipeline": 2}, 6, "6 processes cannot hold parallel.tensor = 2 × parallel.pipeline = 2"),
        ({"tensor": 2, "context": 2}, 6, "start a multiple of 4, or lower one of them"),
        ({"data": 3, "tensor": 2}, 8, "parallel.data = 3 needs 6 processes, but there are 8: set parallel.data=4"),
        ({"expert": 4, "tensor": 2, "pipeline": 2}, 4, "possible: 1, 2, or make parallel.data a multiple of 2"),
        ({"expert": 4, "data": 6}, 6, "possible: 1, 2, 3, 6, or make parallel.data a multiple of 4"),
    ],
)
def test_a_layout_that_does_not_fit_the_world(layout: dict[str, Any], world: int, message: str) -> None:
    (problem,) = world_problems(Parallel(**layout), world)
    assert message in problem


def test_worlds_that_fit() -> None:
    for layout, world in (({}, 5), ({"tensor": 2}, 6), ({"expert": 8, "tensor": 2, "context": 2}, 8)):
        assert list(world_problems(Parallel(**layout), world)) == []


@pytest.mark.parametrize(
    ("training", "layout", "world", "message"),
    [
        ({"prompts_per_step": 3}, {}, 4, "training.prompts_per_step = 3 leaves some of the 4 data-parallel ranks"),
        ({"prompts_per_step": 3}, {"data": 4}, 4, "raise it to at least 4, or give ranks to parallel.tensor"),
        ({"max_length": 6}, {"context": 4}, 4, "training.max_length is 6 tokens: lower parallel.context to at most 3"),
        ({}, {"context": 256}, 256, "into 512 pieces, but the model's context is 256 tokens: lower parallel.context"),
    ],
)
def test_too_little_to_share(training: dict[str, Any], layout: dict[str, Any], world: int, message: str) -> None:
    config = Config(training=Training(**training), parallel=Parallel(**layout))
    (problem,) = share_problems(config, DENSE, world)
    assert message in problem


def test_enough_to_share() -> None:
    config = Config(training=Training(prompts_per_step=4, max_length=8), parallel=Parallel(context=4))
    assert list(share_problems(config, DENSE, 16)) == []


def test_traces_count_only_where_nothing_is_rolled_out() -> None:
    config = Config(training=Training(traces_per_step=1))
    assert list(share_problems(config, DENSE, 2)) == []
    config.method.name = "sft"
    assert "training.traces_per_step = 1" in next(share_problems(config, DENSE, 2))


def test_a_mixture_of_experts_is_known_by_its_config(tmp_path: Path) -> None:
    sizes = directory_sizes(make_model(tmp_path / "m", num_experts=4, moe_intermediate_size=33, hidden_size=16))
    assert (sizes.experts, sizes.expert_size, sizes.dense_layers) == (4, 33, 0)
    some = make_model(tmp_path / "s", num_experts=4, mlp_only_layers=[0], decoder_sparse_step=2)
    assert directory_sizes(some).dense_layers == 2  # layers 1 and 3 have experts
    parameters = sizes.parameters()
    assert parameters is not None and parameters.expert == 4 * 4 * 3 * 16 * 33
    assert parameters.total == 2 * 16 * 100 + parameters.dense + parameters.expert
    assert directory_sizes(make_model(tmp_path / "d")).parameters() is None  # no hidden size


def test_the_world_of_torchrun_is_checked_at_once(tmp_path: Path) -> None:
    text = "model: {generated: {}}\nrollout: {max_new_tokens: 24}\ndata: {rl: {task: running_sums}, template: plain}\n"
    path = write(tmp_path / "c.yaml", text + f"run: {{directory: {tmp_path}/run}}\n")
    config = load_config(path, ["parallel.tensor=2"])
    check_config(config)
    check_config(config, world=4)
    with pytest.raises(ConfigError, match="start a multiple of 2"):
        check_config(config, world=3)
