"""All rewards behind one door: by name, built when first needed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from bridge_mcore.config.rewards import PLUGIN, Unfinished, plugins_among, reward_problem, unnamed_plugin
from bridge_mcore.config.rewards import Reward as RewardSection
from bridge_mcore.errors import ConfigError
from bridge_mcore.rewards.any_of import AnyOfReward
from bridge_mcore.rewards.noise import NoisyReward
from bridge_mcore.rewards.protocol import Attempt, Reward
from bridge_mcore.rewards.sandbox import SandboxSettings
from bridge_mcore.rewards.thoughts import after_thought
from bridge_mcore.rewards.verdict import Verdict


@dataclass(frozen=True)
class RewardSettings:
    """Settings of all rewards of a run.

    Attributes:
        workers: processes of each reward that has any.
        cpu_seconds: CPU seconds of one comparison, score or plugin call; `sandbox.cpu_seconds` is that of a program.
        wall_seconds: seconds of one comparison, score or plugin call.
        memory_gib: address space of one worker in GiB; programs have `sandbox.memory_mib`.
        program_seconds: seconds for all tests of one program.
        partial: keep reasoning-gym's scores between 0 and 1.
        noise: probability that a verdict is flipped; 0: no noise.
        noise_seed: which ones.
        thoughts: answers inside a thought count too (but for plugins, which read all of a response anyway).
        unfinished: of `math`: "refuse" an answer that is still to be computed where the gold is a number, or only one
            that "repeats" the question.
        tolerance: of `math`: relative difference at which a number with decimals counts as the right one.
        sandbox: limits of candidate programs.
        plugins: the rewards `plugin:…` that the user's settings name; no other is ever built, whatever asks for it.
    """

    workers: int = 2
    cpu_seconds: float = 5.0
    wall_seconds: float = 60.0
    memory_gib: float = 2.0
    program_seconds: float = 120.0
    partial: bool = False
    noise: float = 0.0
    noise_seed: int = 0
    tolerance: float = 0.0
    thoughts: bool = False
    unfinished: Unfinished = "refuse"
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    plugins: frozenset[str] = frozenset()


def check_names(names: Iterable[str]) -> None:
    """Raises ConfigError for a reward that does not exist, with the nearest that does. Loads nothing."""
    for name in dict.fromkeys(names):
        if problem := reward_problem(name):
            raise ConfigError(f"reward: {problem}")


def settings_of(section: RewardSection, plugins: frozenset[str] = frozenset()) -> RewardSettings:
    """What the configuration's section `reward` says; plugins: those that all of the configuration names."""
    limits = section.sandbox.model_dump()
    return RewardSettings(
        workers=section.workers, cpu_seconds=section.cpu_seconds, wall_seconds=section.wall_seconds,
        memory_gib=section.memory_gib, program_seconds=limits.pop("program_seconds"), partial=section.partial,
        noise=section.noise, noise_seed=section.noise_seed, tolerance=section.tolerance,
        thoughts=section.thoughts, unfinished=section.unfinished,
        sandbox=SandboxSettings(**limits), plugins=plugins | plugins_among([section.verifier]),
    )  # fmt: skip


def build_reward(name: str, settings: RewardSettings) -> Reward:
    """One reward by name, without noise. Raises ConfigError, as its constructor does too."""
    check_names([name])
    if problem := unnamed_plugin(name, settings.plugins):
        raise ConfigError(f"reward: {problem}")
    limits = (settings.workers, settings.cpu_seconds, settings.wall_seconds, settings.memory_gib)
    # Imported when wanted: some need an optional package, and a run with math alone needs no sandbox.
    if name == "math":
        from bridge_mcore.rewards.math import MathVerifier

        return MathVerifier(
            *limits, tolerance=settings.tolerance, thoughts=settings.thoughts, unfinished=settings.unfinished
        )
    if name == "choice":
        from bridge_mcore.rewards.choice import ChoiceReward

        return ChoiceReward()
    if name == "logic":
        from bridge_mcore.rewards.logic import LogicReward

        return LogicReward()
    if name == "code":
        from bridge_mcore.rewards.code import CodeReward

        return CodeReward(settings.sandbox, settings.workers, settings.program_seconds)
    if name == "gym":
        from bridge_mcore.rewards.gym import GymReward

        return GymReward(*limits, partial=settings.partial)
    from bridge_mcore.rewards.plugin import PluginReward

    return PluginReward(name.removeprefix(PLUGIN), *limits)


class Rewards:
    """Judges attempts at problems of several kinds. Any thread may call.

    A reward is built when it is first needed, or by :meth:`prepare`, and stays until :meth:`close`.
    """

    def __init__(self, settings: RewardSettings = RewardSettings()) -> None:
        if not 0 <= settings.noise <= 1:
            raise ConfigError(f"noise: {settings.noise} is no probability; give a number from 0 to 1")
        self.settings = settings
        self._lock = threading.Lock()
        self._rewards: dict[str, Reward] = {}

    @property
    def counts(self) -> Counter[str]:
        """Verdicts ever given, by name, over all rewards; with noise, also the flips."""
        with self._lock:
            return sum((reward.counts for reward in self._rewards.values()), Counter())

    @property
    def counts_by_reward(self) -> dict[str, Counter[str]]:
        """The same for each reward."""
        with self._lock:
            return {name: Counter(reward.counts) for name, reward in self._rewards.items()}

    def prepare(self, names: Iterable[str]) -> None:
        """Build these now, so that what is missing is said at the start. Raises ConfigError or BridgeError."""
        names = list(dict.fromkeys(names))
        check_names(names)
        for name in names:
            self._reward(name)

    def judge(self, names: Sequence[str], attempts: Sequence[Attempt], noise: bool = True) -> list[Verdict]:
        """The verdict on every attempt, in order, each by the reward that ``names`` says at the same place.

        :param noise: False leaves the noise out, if there is any: an evaluation measures what is so.

        :raises ConfigError: a reward that does not exist or cannot be built.
        :raises BridgeError: worker processes cannot be started.
        """
        places: dict[str, list[int]] = {}
        for index, (name, _) in enumerate(zip(names, attempts, strict=True)):
            places.setdefault(name, []).append(index)
        verdicts: dict[int, Verdict] = {}
        for name, indices in places.items():
            reward = self._reward(name)
            if not noise and isinstance(reward, NoisyReward):
                reward = reward.reward
            judged = reward.judge([self._read(name, attempts[index]) for index in indices])
            verdicts.update(zip(indices, judged, strict=True))
        return [verdicts[index] for index in range(len(attempts))]

    def close(self) -> None:
        """End what was started. May be called twice."""
        with self._lock:
            for reward in self._rewards.values():
                reward.close()

    def _read(self, name: str, attempt: Attempt) -> Attempt:
        """An attempt without its thoughts; a plugin gets what the model wrote."""
        if self.settings.thoughts or name.startswith(PLUGIN):
            return attempt
        said = after_thought(attempt.response, attempt.thinking)
        if said is attempt.response:
            return attempt
        return replace(attempt, response=said, thinking=False)

    def _reward(self, name: str) -> Reward:
        with self._lock:
            if name not in self._rewards:
                reward = build_reward(name, self.settings)
                if name not in ("code", "gym"):  # whose golds are tests and parameters
                    reward = AnyOfReward(reward)
                if self.settings.noise:
                    reward = NoisyReward(reward, self.settings.noise, self.settings.noise_seed)
                self._rewards[name] = reward
            return self._rewards[name]
