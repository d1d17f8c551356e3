"""Whether a run can learn at all: what its settings and first steps say where it cannot, and what to change."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bridge_mcore.config.schema import Config
from bridge_mcore.monitoring.text import number

#: Steps in a row that have to say the same.
WINDOW = 5
#: Shares of a step's answers: beyond one, cut (or unreadable) answers are why all are wrong; beyond the other, they are
#: worth a line of their own.
_CAUSE, _NEARLY_ALL = 0.5, 0.9
#: AdamW moves a weight by about its learning rate, and a float32 weight of usual size not by less than this.
_SMALLEST_RATE = 1e-9


class LearningWatch:
    """Is shown every step's metrics; gives each remark once. It begins anew where a run is resumed."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=WINDOW)
        self._steps = 0
        self._holding: dict[str, str] = {}
        self._held: Counter[str] = Counter()
        self._said: dict[str, str] = {}

    def see(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        """Take note of a finished step; remarks that are new. A run shorter than the window is judged at its end."""
        self._recent.append(metrics)
        self._steps += 1
        whole = len(self._recent) == WINDOW or step >= self._config.training.steps
        self._holding = dict(self._found()) if whole else {}
        self._held.update(self._holding.keys())
        new = {kind: text for kind, text in self._holding.items() if kind not in self._said}
        self._said |= new
        return list(new.values())

    def lasting(self) -> list[str]:
        """Remarks that still hold, or held in most of the steps: a run that got over its trouble has none."""
        return [
            self._holding.get(kind, text)
            for kind, text in self._said.items()
            if kind in self._holding or 2 * self._held[kind] > self._steps
        ]

    def _found(self) -> Iterator[tuple[str, str]]:
        rolled_out = [line for line in self._recent if "groups_with_signal" in line]
        signal, cut = _mean(rolled_out, "groups_with_signal"), _mean(rolled_out, "truncated")
        if rolled_out and len(rolled_out) == len(self._recent):
            if signal == 0:
                if (why := self._no_signal(rolled_out)) is not None:
                    yield "signal", why
                return
            if cut >= _NEARLY_ALL:
                yield "cut", f"{self._cut(cut)}, and a cut answer is rarely right: {_LONGER}"
            elif (without := _mean(rolled_out, "unanswered")) >= _NEARLY_ALL:
                yield "form", f"{without:.0%} of the answers of {_steps(rolled_out)} hold {_NO_FORM}"
        moves = [value for line in self._recent for key, value in line.items() if key.startswith("update_norm_")]
        if moves and not any(moves):
            rate = self._config.optimizer.alpha
            yield (
                "still",
                f"no weight has moved in {_steps(self._recent)}: the learning rate (optimizer.alpha = {rate:g}) is too "
                "small, or no objective has a gradient; raise it, or look at grad_norm_… in metrics.jsonl",
            )

    def _no_signal(self, lines: list[Mapping[str, Any]]) -> str | None:
        """Why no group of a stretch of steps has answers of different reward; None where that is as it should be."""
        reward = self._config.reward
        known = [line.get("correct", (line["reward"] - reward.incorrect) / (reward.correct - reward.incorrect))
                 for line in lines if number(line.get("reward")) is not None]  # fmt: skip
        head = f"rewards have taught nothing in {_steps(lines)}: no group of answers has both right and wrong ones"
        if known and min(known) > 1 - 1e-6:
            # Later in a run this is what success looks like.
            always = self._steps <= WINDOW or "signal" in self._holding
            return f"{head}, all are right. Take harder problems" if always else None
        if known and max(known) > 1e-6:
            return (
                f"{head}: all answers to a problem are right, or all wrong. Raise rollout.samples_per_prompt or "
                "rollout.temperature"
            )
        cut, without = _mean(lines, "truncated"), _mean(lines, "unanswered")
        if cut >= _CAUSE:
            return f"{head}. All are wrong, and {self._cut(cut)}: {_LONGER}"
        if without >= _CAUSE:
            return f"{head}. All are wrong, and {without:.0%} of them hold {_NO_FORM}"
        return (
            f"{head}, all are wrong. Take easier problems or a model that solves some of them, or raise "
            f"rollout.samples_per_prompt; {_LOOK}"
        )

    def _cut(self, share: float) -> str:
        return f"{share:.0%} of the answers are cut at rollout.max_new_tokens = {self._config.rollout.max_new_tokens}"


_LOOK = "some of the answers are in evaluations/ of the run's directory"
_LONGER = "raise rollout.max_new_tokens, or take a model that ends its answers"
_NO_FORM = (
    "no answer in the form that the reward reads (\\boxed{…} for math): ask for it in the prompt (data.template), or "
    f"take a model that follows it; {_LOOK}"
)


def remarks_before(config: Config) -> list[str]:
    """What the settings alone say."""
    optimizer, steps = config.optimizer, config.training.steps
    found = []
    if optimizer.warmup_steps >= steps > 0:
        found.append(
            f"optimizer.warmup_steps = {optimizer.warmup_steps} is not less than training.steps = {steps}: the run "
            "ends before its learning rate is optimizer.alpha, and may learn little; lower warmup_steps, or train "
            "longer"
        )
    rates = (optimizer.alpha, optimizer.beta or optimizer.alpha)
    if optimizer.name == "adamw" and max(rates) < _SMALLEST_RATE:
        found.append(
            f"optimizer.alpha = {optimizer.alpha:g} is too small for weights in float32 to move: nothing will be learnt"
        )
    return found


def remarks_after(config: Config, lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is to be said again at the end of a run, from all its metrics: those of its earlier attempts count too."""
    watch = LearningWatch(config)
    for line in lines:
        watch.see(line["step"], line)
    return [*remarks_before(config), *watch.lasting()]


def _mean(lines: Iterable[Mapping[str, Any]], key: str) -> float:
    values = [value for line in lines if (value := number(line.get(key))) is not None]
    return sum(values) / len(values) if values else 0.0


def _steps(lines: Iterable[Any]) -> str:
    count = len(list(lines))
    return f"the last {count} steps" if count > 1 else "the only step"
