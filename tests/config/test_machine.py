"""What can be written, and what this machine can hold: told without taking or leaving anything."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from bridge_mcore.config import machine
from bridge_mcore.config.load import load_values
from bridge_mcore.config.model_files import Sizes, generated_sizes
from bridge_mcore.config.outputs import directory_problem, file_problem
from bridge_mcore.config.reward_checks import plugin_problem
from bridge_mcore.config.schema import TASK_SIZES, TASKS, Config, GeneratedModel
from bridge_mcore.data import knights, tasks
from bridge_mcore.errors import ConfigError


class TestOutputs:
    def test_what_can_be_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for path in (tmp_path, tmp_path / "a", Path("a/b/c"), Path(".")):
            assert directory_problem(path) is None
        (tmp_path / "old.json").write_text("")
        for path in (tmp_path / "old.json", tmp_path / "new.json", Path("x/new.json")):
            assert file_problem(path) is None
        assert [path.name for path in tmp_path.iterdir()] == ["old.json"]

    def test_what_cannot(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "nowhere").symlink_to("gone")
        (tmp_path / "circle").symlink_to("circle")
        for path, message in (
            (Path("/"), "the root of the file system"),
            (tmp_path / "x" / Path(*[".."] * 30), "the root of the file system"),
            (Path("/proc/x"), "nothing can be made in /proc"),
            (tmp_path / "file", "is a file"),
            (tmp_path / "file" / "x" / "y", "is a file"),
            (tmp_path / "nowhere" / "x", "is a symbolic link to nowhere"),
            (tmp_path / "circle", "is a symbolic link to nowhere"),
            (tmp_path / ("x" * 300), "longer than 255 bytes"),
            (tmp_path / "a" / ("ü" * 130), "longer than 255 bytes"),
            (Path("/".join(["d" * 200] * 20)), "more than 3500 bytes"),
        ):
            found = directory_problem(path)
            assert found is not None and message in found, (path, found)
            assert directory_problem(path / "below") is not None or path == Path("/") or ".." in path.parts
        assert "is a directory" in str(file_problem(tmp_path))
        assert "is a file" in str(file_problem(tmp_path / "file" / "x.json"))

    @pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
    def test_permissions(self, tmp_path: Path) -> None:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "Permission denied" in str(directory_problem(tmp_path / "closed" / "run"))


class TestMachine:
    @pytest.fixture(autouse=True)
    def two_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        monkeypatch.setattr(machine, "host_memory", lambda: 24.0)
        monkeypatch.setattr(machine, "joined", lambda: False)

    def problems(self, *overrides: str, sizes: Sizes | None = None, world: int = 1) -> list[str]:
        return list(machine.machine_problems(load_values(Config, overrides), sizes or Sizes("x"), world))

    def test_threads_and_processes(self) -> None:
        assert self.problems("run.threads=16", "reward.workers=128", world=128) == []
        (threads,) = self.problems("run.threads=17")
        assert threads == "run.threads = 17 is more than 8 for each of this machine's 2 cores; lower it"
        assert "reward.workers = 129 is more than 64" in self.problems("reward.workers=129")[0]
        assert "the product of the parallel sizes = 129" in self.problems(world=129)[0]

    def test_ranks_of_torchrun_may_be_anywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "joined", lambda: True)
        assert self.problems(world=4096) == []

    def test_descriptors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (200, 200))
        machine.require_descriptors()
        assert self.problems() == []
        assert self.problems("reward.workers=10") == []
        assert "needs 204" in self.problems("reward.workers=11")[0]
        assert "needs 424" in self.problems("rollout.engine=sglang")[0]
        monkeypatch.setattr(resource, "getrlimit", lambda _: (159, 159))
        with pytest.raises(
            ConfigError, match=r"may have 159 open files \(RLIMIT_NOFILE\), and needs 160.*ulimit -n 4096"
        ):
            machine.require_descriptors()
        monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
        machine.require_descriptors()

    def test_a_generated_model_fits_into_memory(self) -> None:
        def said(layers: int) -> list[str]:
            spec = GeneratedModel(
                hidden_size=4096, intermediate_size=16384, heads=32, kv_heads=32, head_dim=128, layers=layers
            )
            return self.problems("model.generated={}", sizes=generated_sizes(spec))

        # 4 × 4096² of attention and 3 × 4096 × 16384 of the MLP: 268 million parameters, exactly 1 GiB a layer
        assert said(24) == []
        (problem,) = said(25)
        assert "25 GiB of weights, and this machine 24 GiB" in problem


class TestPlugins:
    def test_found_without_running_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "reward_package_of_a_test"
        package.mkdir()
        ran = tmp_path / "ran"
        for name in ("__init__", "inside"):
            (package / f"{name}.py").write_text(f"open({str(ran)!r}, 'w'); raise SystemExit('it was run')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        name = package.name
        for place in (name, f"{name}.inside", "timeit", "sys", "json.decoder", f"{package}/inside.py"):
            assert plugin_problem(f"plugin:{place}:f") is None, place
        assert f"no module '{name}.gone' can be found" in str(plugin_problem(f"plugin:{name}.gone:f"))
        assert "is a module and no package" in str(plugin_problem(f"plugin:{name}.inside.deeper:f"))
        assert "no module 'no_such_module_here'" in str(plugin_problem("plugin:no_such_module_here.x:f"))
        assert "there is no file" in str(plugin_problem(f"plugin:{package}/gone.py:f"))
        assert "this is no path" in str(plugin_problem(f"plugin:{'x' * 5000}.py:f"))
        assert not ran.exists() and name not in sys.modules


def test_sizes_of_tasks_are_those_of_the_tasks() -> None:
    assert TASK_SIZES.keys() == set(TASKS)
    assert TASK_SIZES["running_sums"] == (1, tasks.MOST_TERMS)
    assert TASK_SIZES["knights"] == (knights.FEWEST, knights.MOST)
