"""Kill training runs at random moments, resume each, and compare it bit for bit with one that nobody disturbed.

    python tools/kill_runs.py --kills 100 --json kills.json

Victims are the trainer or its ranks, the launcher, and the workers of the verifier; moments are the start, after a
step, while a checkpoint is written, in an evaluation, in the export, and anywhere. A run whose trainer was killed is
resumed with run.resume=auto, and killed again with a chance of a half, until it ends. Then these must be what the
undisturbed run of the layout has: every file of export/ and export_peft/, the tensors' files of the newest checkpoint,
and each line of metrics, evaluations and their records, clocks and memory aside. After each kill nothing may live on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

CONFIG = """
run: {directory: DIRECTORY, seed: 3}
model: {generated: {layers: 1, hidden_size: 64, heads: 2, kv_heads: 2, intermediate_size: 128,
        warm_start: {steps: 40, batch_size: 32, difficulty: [2, 4], learning_rate: 5e-3}}}
adapter: {rank: 4}
objective: {kl_coefficient: 0.01}
optimizer: {alpha: 1e-3, beta: 2e-3}
training: {steps: 12, prompts_per_step: 4, traces_per_step: 4}
rollout: {samples_per_prompt: 4, max_new_tokens: 20}
data:
  template: plain
  rl: {task: running_sums, size: 37, difficulty: [2, 3]}
  sft: {task: running_sums, size: 12, difficulty: [2, 4], seed: 5}
  evaluation: [{task: running_sums, split: test, size: 8, difficulty: [2, 4]}]
evaluation: {every: 4}
checkpoint: {every: 2, keep: 2}
monitoring: {tensorboard: false, figure: false}
"""
MOMENTS = ("start", "step", "checkpoint", "evaluation", "export", "any")
#: What a clock or the machine decides.
VOLATILE = ("seconds", "tokens_per_second", "memory")
MARK = "BRIDGE_MCORE_KILL_RUNS"


@dataclass
class Tally:
    """What was done and found."""

    kills: Counter[str] = field(default_factory=Counter)  # "victim, moment"
    runs: int = 0
    equal: int = 0
    slowest_end: float = 0.0
    left: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def processes(mark: str) -> list[psutil.Process]:
    """All that a run has started and that lives."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def role(process: psutil.Process, top: int) -> str:
    """launcher, trainer (of one process), rank N, worker, or other."""
    try:
        command, environment = " ".join(process.cmdline()), process.environ()
    except (psutil.Error, OSError):
        return "other"
    if "rewards/worker.py" in command:
        return "worker"
    if "bridge_mcore.launch.worker" in command:
        return f"rank {environment.get('RANK')}"
    if process.pid == top:
        return "top"
    return "other"


def lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines without what a clock decides."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(VOLATILE)} for row in rows]


def fingerprint(directory: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on what happened to it."""
    found: dict[str, Any] = {}
    newest = max((directory / "checkpoints").glob("step_*"))
    for pattern in ("export/**/*", "export_peft/**/*", f"checkpoints/{newest.name}/*.distcp"):
        for path in sorted(directory.glob(pattern)):
            if path.is_file() and path.name != "adapter_config.json":  # which names the directory of its base
                found[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for pattern in ("metrics.jsonl", "evaluation.jsonl", "evaluations/*.jsonl"):
        for path in sorted(directory.glob(pattern)):
            rows = lines(path)
            # A run that is killed in its export evaluates its last step again: for every reader the last line counts.
            by_step = {row["step"]: row for row in rows} if path.name == "evaluation.jsonl" else rows
            found[str(path.relative_to(directory))] = by_step
    found["checkpoints"] = sorted(p.name for p in (directory / "checkpoints").iterdir())
    return found


class Life:
    """One process (and its ranks) from start to end, or to its kill."""

    def __init__(self, directory: Path, ranks: int, number: int) -> None:
        self.directory, self.ranks = directory, ranks
        self.mark = f"{os.getpid()}-{number}"
        self.log = directory.with_suffix(".log")
        self.steps = len(self._metrics())
        config = directory.with_suffix(".yaml")
        config.write_text(CONFIG.replace("DIRECTORY", str(directory)))
        command = [sys.executable, "-m", "bridge_mcore", "train", str(config), "run.resume=auto"]
        command += [f"parallel.data={ranks}"]
        self.start_of_log = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as out:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: self.mark}
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        self.began = time.monotonic()

    def _metrics(self) -> list[bytes]:
        path = self.directory / "metrics.jsonl"
        return path.read_bytes().splitlines() if path.exists() else []

    def said(self) -> str:
        """What this life has printed."""
        with open(self.log, "rb") as file:
            file.seek(self.start_of_log)
            return file.read().decode(errors="replace")

    def wait_for(self, moment: str, rng: random.Random, usual: float) -> bool:
        """Return when it is time to kill: True; False if the run ended before."""
        after = rng.uniform(0, 0.5 * usual if moment == "start" else usual)
        step = self.steps + rng.randint(1, 4)
        pause = rng.choice([0.0, 0.0, 0.002, 0.01, rng.uniform(0, 0.2)])
        while self.process.poll() is None:
            time.sleep(0.002)
            if time.monotonic() - self.began > 600:
                raise SystemExit(f"{self.directory}: a run hangs:\n{self.said()[-2000:]}")
            if moment in ("start", "any"):
                due = time.monotonic() - self.began > after
            elif moment == "step":
                due = len(self._metrics()) >= step
            elif moment == "checkpoint":
                due = any((self.directory / "checkpoints").glob(".step_*.incomplete"))
            else:
                due = {"evaluation": "evaluating after", "export": "exporting"}[moment] in self.said()
            if due:
                time.sleep(pause)
                return self.process.poll() is None
        return False

    def kill(self, victim: str) -> str | None:
        """Kill it, or the process of it that is meant; whom, None if there was none."""
        by_role = {role(p, self.process.pid): p for p in processes(self.mark)}
        name = "launcher" if self.ranks > 1 else "trainer"
        target = by_role.get("top" if victim == "top" else victim)
        if target is None:
            return None
        try:
            target.kill()
        except psutil.Error:
            return None
        return name if victim == "top" else victim

    def end(self) -> tuple[float, list[str]]:
        """Wait until nothing of it lives: how long that took, and what would not go."""
        began = time.monotonic()
        while time.monotonic() - began < 90:
            self.process.poll()
            left = processes(self.mark)
            if not left:
                return time.monotonic() - began, []
            time.sleep(0.05)
        names = [" ".join(p.cmdline())[:120] for p in left]
        for process in left:
            process.kill()
        return time.monotonic() - began, names


def run_to_its_end(directory: Path, ranks: int) -> float:
    """An undisturbed run; its seconds."""
    life = Life(directory, ranks, 0)
    if life.process.wait(timeout=600):
        raise SystemExit(f"the undisturbed run failed:\n{life.said()[-3000:]}")
    return time.monotonic() - life.began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--processes", default="1,2", help="layouts to take turns with: data-parallel sizes")
    parser.add_argument("--directory", type=Path, help="where runs go (default: a temporary directory)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rng, tally = random.Random(options.seed), Tally()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kill-runs-", dir=options.directory) as scratch:
        root = Path(scratch)
        sizes = [int(n) for n in options.processes.split(",")]
        usual = {n: run_to_its_end(root / f"whole_{n}", n) for n in sizes}
        whole = {n: fingerprint(root / f"whole_{n}") for n in sizes}
        number = 0
        while sum(tally.kills.values()) < options.kills:
            ranks = sizes[tally.runs % len(sizes)]
            directory = root / f"run_{tally.runs}"
            number = one_run(directory, ranks, rng, tally, usual[ranks], number)
            found = fingerprint(directory)
            wrong = [name for name in {**whole[ranks], **found} if whole[ranks].get(name) != found.get(name)]
            tally.runs += 1
            tally.equal += not wrong
            if wrong:
                tally.different.append(f"{directory.name}: {', '.join(wrong[:5])}")
            print(f"{sum(tally.kills.values()):4} kills, {tally.runs} runs, {tally.equal} equal", flush=True)
            if not wrong:
                shutil.rmtree(directory)
    report(tally, options)
    if tally.different or tally.left:
        raise SystemExit(1)


def one_run(directory: Path, ranks: int, rng: random.Random, tally: Tally, usual: float, number: int) -> int:
    """One run to its end, over as many lives as it takes."""
    lives = 0
    while True:
        number, lives = number + 1, lives + 1
        life = Life(directory, ranks, number)
        if lives == 1 or (lives < 8 and rng.random() < 0.6):
            moment = rng.choice(MOMENTS)
            victims = ["top", "worker"] if ranks == 1 else ["top", *(f"rank {r}" for r in range(ranks)), "worker"]
            weights = [3, 1] if ranks == 1 else [2, *[2] * ranks, 1]
            (victim,) = rng.choices(victims, weights)
            killed = life.kill(victim) if life.wait_for(moment, rng, usual) else None
            if killed is not None:
                tally.kills[f"{killed}, {moment}"] += 1
        code = life.process.wait(timeout=900)
        seconds, left = life.end()
        tally.slowest_end = max(tally.slowest_end, seconds)
        tally.left += left
        said = life.said()
        if "Traceback" in said and "lost its connection" not in said:
            tally.different.append(f"{directory.name}: a traceback: {said[-500:]}")
        if code == 0:
            return number


def report(tally: Tally, options: argparse.Namespace) -> None:
    """The table, and the JSON."""
    victims = sorted({key.split(", ")[0] for key in tally.kills})
    print(f"\n{'':10}" + "".join(f"{moment:>12}" for moment in MOMENTS))
    for victim in victims:
        print(f"{victim:10}" + "".join(f"{tally.kills[f'{victim}, {moment}']:12}" for moment in MOMENTS))
    print(
        f"\n{sum(tally.kills.values())} kills in {tally.runs} runs, of which {tally.equal} end bit for bit as the "
        f"undisturbed one; processes left: {len(tally.left)}; all gone after at most {tally.slowest_end:.1f} s"
    )
    for line in [*tally.different, *tally.left]:
        print(line)
    if options.json:
        options.json.write_text(json.dumps({**tally.__dict__, "kills": dict(tally.kills), "seed": options.seed}))


if __name__ == "__main__":
    main()
