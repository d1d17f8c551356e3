"""`parallel: auto`: what it chooses for real models and clusters, and when it says that nothing fits."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bridge_mcore.config.auto import UNKNOWN_GPU_GIB, USABLE, choose_parallel
from bridge_mcore.config.load import dump_config, load_config
from bridge_mcore.config.parallel import parallel_problems, world_problems
from bridge_mcore.config.schema import Config, Model, Parallel
from bridge_mcore.errors import ConfigError
from bridge_mcore.launch import layout as launch_layout
from bridge_mcore.launch.layout import resolve
from bridge_mcore.platform.ranks import gpu_memories
from tests.config.files import SHAPES, make_model, write

GOOD = "model: {generated: {}}\nrollout: {max_new_tokens: 24}\ndata: {rl: {task: running_sums}, template: plain}\n"


@pytest.mark.parametrize(
    ("name", "billions"), [("0.5B", 0.494), ("1.5B", 1.544), ("7B", 7.62), ("70B", 70.6), ("235B", 235.1)]
)
def test_parameters_are_counted(name: str, billions: float) -> None:
    parameters = SHAPES[name].parameters()
    assert parameters is not None and parameters.total / 1e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "world", "sizes"),
    [
        ("0.5B", 1, {}),
        ("0.5B", 8, {"data": 8}),
        ("0.5B", 512, {"data": 512}),
        ("1.5B", 1, {}),
        ("1.5B", 8, {"data": 8}),
        ("1.5B", 16, {"data": 16}),
        ("7B", 8, {"tensor": 2, "data": 4}),
        ("7B", 64, {"data": 64}),
        ("70B", 64, {"tensor": 8, "pipeline": 2, "data": 4}),
        ("70B", 512, {"tensor": 8, "data": 64}),
        ("235B", 512, {"tensor": 2, "expert": 64, "data": 256}),
    ],
)
def test_what_is_chosen(name: str, world: int, sizes: dict[str, int]) -> None:
    layout, line = choose_parallel(SHAPES[name], world)
    assert layout == Parallel(**({"data": 1} | sizes), sequence=sizes.get("tensor", 1) > 1)
    assert all(f"{key} {size}" in line for key, size in sizes.items()) and "of 80 GiB" in line


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("world", [1, 8, 16, 24, 64, 512])
@pytest.mark.parametrize(("memory", "per_node"), [(24, 8), (80, 8), (192, 4)])
@pytest.mark.parametrize("max_length", [None, 131072])
def test_whatever_is_chosen_is_allowed(
    name: str, world: int, memory: int, per_node: int, max_length: int | None
) -> None:
    try:
        layout, _ = choose_parallel(SHAPES[name], world, memory, per_node, max_length)
    except ConfigError as error:
        assert "would do" in str(error) or "use a machine with more memory" in str(error)
        return
    assert [*parallel_problems(layout, SHAPES[name]), *world_problems(layout, world)] == []
    assert layout.tensor <= per_node and world % (layout.tensor * layout.pipeline * layout.context) == 0


@pytest.mark.parametrize(("name", "world", "enough"), [("7B", 1, 8), ("70B", 16, 64), ("235B", 64, 256)])
def test_too_few_are_told_how_many(name: str, world: int, enough: int) -> None:
    with pytest.raises(ConfigError, match=rf"no layout on {world} GPUs? of 80 GiB .* {enough} would do"):
        choose_parallel(SHAPES[name], world)
    choose_parallel(SHAPES[name], enough)
    with pytest.raises(ConfigError):
        choose_parallel(SHAPES[name], enough // 2)


def test_only_mends_that_help_are_named() -> None:
    with pytest.raises(ConfigError) as error:
        choose_parallel(SHAPES["1.5B"], 1, 48)
    assert "or set slots.theta_hat.offload=pinned_cpu" in str(error.value) and "kl_coef" not in str(error.value)
    choose_parallel(SHAPES["1.5B"], 1, 48, uses_auxiliary=False)
    with pytest.raises(ConfigError, match=r"use a machine with more memory$"):
        choose_parallel(SHAPES["7B"], 1, 24, device="cpu", dtype="float32")


def test_long_sequences_are_split() -> None:
    assert choose_parallel(SHAPES["7B"], 64, max_length=131072)[0] == Parallel(context=4, data=16)
    assert choose_parallel(SHAPES["7B"], 64, max_length=32768)[0].context == 1
    assert choose_parallel(SHAPES["0.5B"], 2, max_length=131072)[0] == Parallel(context=2, data=1)


def test_more_memory_is_used() -> None:
    assert choose_parallel(SHAPES["7B"], 8, 192)[0] == Parallel(data=8)
    assert choose_parallel(SHAPES["7B"], 8, 24, uses_auxiliary=False, uses_reference=False)[0].tensor == 4


class TestResolve:
    @pytest.fixture
    def load(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(launch_layout, "gpu_memories", list)

        def loader(*overrides: str) -> Config:
            return load_config(write(tmp_path / "c.yaml", GOOD + "parallel: auto\n"), overrides)

        return loader

    def test_one_process_on_a_cpu(self, load, tmp_path: Path, capsys) -> None:
        config = resolve(load())
        assert config.parallel == Parallel(data=1) and "no split on 1 process" in capsys.readouterr().out
        again = load_config(write(tmp_path / "resolved.yaml", dump_config(config)))
        assert again == config and resolve(again) is again

    def test_a_layout_that_is_given_is_kept(self, load) -> None:
        config = load("parallel={tensor: 2}")
        assert resolve(config) is config

    def test_torchrun(self, load, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        assert resolve(load()).parallel.data == 4
        assert capsys.readouterr().out == ""  # rank 0 says it

    def test_the_gpus_of_this_machine(self, load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(launch_layout, "gpu_memories", lambda: [80] * 8)
        config = load("device=cuda", "parallel.overlap_grad_reduce=true")
        assert resolve(config).parallel == Parallel(data=8, overlap_grad_reduce=True)
        large = load("device=cuda", "model.dtype=bfloat16")
        config_json: dict[str, Any] = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28}
        config_json |= {"num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064}
        large = large.model_copy(update={"model": Model(path=make_model(tmp_path / "m", **config_json))})
        large.model.dtype = "bfloat16"
        assert resolve(large).parallel.tensor == 2

    def test_what_auto_chooses_cannot_be_given(self, load) -> None:
        with pytest.raises(ConfigError, match="remove it, or set parallel"):
            resolve(load("parallel.tensor=2"))

    def test_a_model_that_is_not_there_is_left_to_the_checks(self, load, tmp_path: Path) -> None:
        assert resolve(load("model.generated=")).parallel == Parallel()
        assert resolve(load("model.generated=", "model.path=gone")).parallel == Parallel()
        with pytest.raises(ConfigError, match="needs the sizes of the model"):
            resolve(load("model.generated=", f"model.path={make_model(tmp_path / 'm')}"))


class TestGpuMemories:
    @pytest.fixture
    def answer(self, monkeypatch: pytest.MonkeyPatch):
        """answer(tool, text): that tool is installed and says this; no other one is."""
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)

        def install(tool: str, text: str, code: int = 0) -> None:
            def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
                if command[0] != tool:
                    raise FileNotFoundError(command[0])
                return subprocess.CompletedProcess(command, code, text, "")

            monkeypatch.setattr(subprocess, "run", run)

        return install

    def test_nvidia(self, answer, monkeypatch: pytest.MonkeyPatch) -> None:
        answer("nvidia-smi", "81559\n81251\n")  # one card may keep more for itself than another
        assert gpu_memories() == [80, 80]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert gpu_memories() == [80]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert gpu_memories() == []

    def test_amd(self, answer) -> None:
        card = '"VRAM Total Memory (B)": "205822885888", "VRAM Total Used Memory (B)": "294551552"'
        answer("rocm-smi", f'{{"card0": {{{card}}}, "card1": {{{card}}}}}')
        assert gpu_memories() == [192, 192]

    def test_none(self, answer) -> None:
        answer("no tool", "")
        assert gpu_memories() == []
        answer("nvidia-smi", "No devices were found\n", code=6)
        assert gpu_memories() == []


def test_the_share_that_may_be_taken_leaves_room() -> None:
    assert 0.5 < USABLE < 0.9 and UNKNOWN_GPU_GIB == 80
