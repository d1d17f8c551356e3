"""When rollouts are made: before each step, one step ahead, or across steps (rollout.schedule)."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist

from bridge_mcore.config.schema import Config
from bridge_mcore.data.pairs import EncodedPrompt
from bridge_mcore.data.sampler import ShuffledSampler
from bridge_mcore.monitoring.progress import say
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.remote.engine import RemoteEngine
from bridge_mcore.training.collect import Collected, Collector


class Schedule(Protocol):
    """Gives each step its rollouts. All methods are collective."""

    def next(self, step: int) -> Collected:
        """The rollouts that step `step` (from 0) trains on; the weights of version `step` are live."""
        ...

    def settle(self, version: int) -> None:
        """Before a checkpoint: wait for what must not be disturbed. version: of the live weights."""
        ...

    def make_room(self, version: int) -> None:
        """Before an evaluation of the live weights, `version`: let the engine have them, and keep it busy."""
        ...

    def state(self) -> list[dict[str, Any]]:
        """What is under way, for a checkpoint."""
        ...

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on with what was under way."""
        ...


def make_schedule(
    name: str,
    config: Config,
    collector: Collector,
    prompts: Sequence[EncodedPrompt],
    order: ShuffledSampler,
    params: SamplingParams,
) -> Schedule:
    """A schedule by its name in rollout.schedule."""
    kind = {"synchronous": Synchronous, "one_step_off": OneStepOff, "partial": Partial}[name]
    return kind(config, collector, prompts, order, params)


class Synchronous:
    """Generate with the live weights, then train."""

    def __init__(
        self,
        config: Config,
        collector: Collector,
        prompts: Sequence[EncodedPrompt],
        order: ShuffledSampler,
        params: SamplingParams,
    ) -> None:
        self.config, self.collector, self.prompts = config, collector, prompts
        self.order, self.params = order, params
        self.per_step = config.training.prompts_per_step
        self.samples = config.rollout.samples_per_prompt

    def first_key(self, step: int) -> int:
        """Number of the first answer of a step; θ̂'s own answers take the numbers between."""
        return 2 * step * self.per_step * self.samples

    def next(self, step: int) -> Collected:
        """See Schedule.next."""
        chosen = [self.prompts[i] for i in self.order.take(self.per_step)]
        refreshed = self.collector.engine.refresh(step)
        collected = self.collector.collect(chosen, self.first_key(step), self.params, step)
        collected.metrics |= refreshed
        collected.prompts = chosen
        return collected

    def settle(self, version: int) -> None:
        """See Schedule.settle."""

    def make_room(self, version: int) -> None:
        """See Schedule.make_room. Nothing is under way, or goes on with the new weights: the evaluation sends them."""

    def state(self) -> list[dict[str, Any]]:
        """See Schedule.state."""
        return []

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """See Schedule.restore. A schedule that has nothing under way cannot go on with what another one had."""
        if len(state) > 1 and self.collector.layout.is_main:
            say(f"· {len(state) - 1} prompts under way at the checkpoint are not asked again: its schedule was another")


@dataclass
class _Group:
    """One prompt under way on this replica: its index in the data set, and the number of its first answer."""

    prompt: int
    first: int


class _Ahead(Synchronous):
    """What schedules share that have answers under way while they train."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        engine = self.collector.engine
        assert isinstance(engine, RemoteEngine)
        self.engine: RemoteEngine = engine
        self.layout = self.collector.layout
        #: this replica's groups under way, in the order they were asked; and answers that came before they are used
        self.groups: list[_Group] = []
        self.ready: dict[int, Rollout] = {}
        self.asked = 0  # prompts asked for so far, over all replicas
        self.load = [0] * self.layout.shares  # groups under way of each replica

    def ask(self, count: int) -> None:
        """Ask for the next `count` prompts of all replicas; this one's share goes under way."""
        mine = []
        for number, index in enumerate(self.order.take(count), self.asked):
            share = self._next_share()
            if share == self.layout.share:
                mine.append(_Group(index, 2 * number * self.samples))
        self.asked += count
        self.groups += mine
        self.engine.submit([r for g in mine for r in self.requests(g)], self.params)

    def _next_share(self) -> int:
        """The replica with the fewest groups under way gets one more; all ranks decide alike."""
        share = self.load.index(min(self.load))
        self.load[share] += 1
        return share

    def requests(self, group: _Group) -> list[Request]:
        """A group's requests."""
        tokens = tuple(self.prompts[group.prompt].tokens)
        return [Request(group.first + j, tokens) for j in range(self.samples)]

    def keys(self, group: _Group) -> range:
        """A group's answers."""
        return range(group.first, group.first + self.samples)

    def finish(self, rollouts: Sequence[Rollout], seconds: float, step: int) -> Collected:
        """Verdicts and advantages of complete groups, which leave `groups`."""
        firsts = [r.key for r in rollouts[:: self.samples]]
        by_first = {g.first: g for g in self.groups}
        prompts = [self.prompts[by_first[first].prompt] for first in firsts]
        self.groups = [g for g in self.groups if g.first not in set(firsts)]
        self.load = [count - self.per_step // self.layout.shares for count in self.load]
        return self.collector.judged(prompts, rollouts, self.params, seconds, step)

    def wait_for(self, groups: Sequence[_Group], step: int) -> None:
        """Wait until all answers of these groups are `ready`."""
        keys = [k for g in groups for k in self.keys(g) if k not in self.ready]
        wanted = set(keys)
        taken = self.engine.collect(lambda done: wanted <= done.keys(), lambda done: keys, step)
        self.ready |= {r.key: r for r in taken}

    def state(self) -> list[dict[str, Any]]:
        """See Schedule.state. Answers that are not finished are asked again after a resume."""
        mine = []
        for g in self.groups:
            answers = [_packed(self.ready[k]) for k in self.keys(g) if k in self.ready]
            mine.append({"prompt": g.prompt, "first": g.first, "answers": answers})
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, mine)
        groups = {entry["first"]: entry for part in parts for entry in part}
        return [{"asked": self.asked}, *(groups[first] for first in sorted(groups))]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """See Schedule.restore. Groups are dealt to the replicas of this layout."""
        if not state:
            return
        self.asked = int(state[0]["asked"])
        self.unasked = []
        for entry in state[1:]:
            if self._next_share() != self.layout.share:
                continue
            group = _Group(int(entry["prompt"]), int(entry["first"]))
            self.groups.append(group)
            prompt = tuple(self.prompts[group.prompt].tokens)
            answers = [_unpacked(a, prompt) for a in entry["answers"]]
            self.ready |= {r.key: r for r in answers}
            self.unasked += [r for r in self.requests(group) if r.key not in self.ready]

    unasked: Sequence[Request] = ()

    def ask_restored(self) -> None:
        """Ask again what a checkpoint found unfinished; the engine has weights now."""
        if self.unasked:
            self.engine.submit(self.unasked, self.params)
        self.unasked = []


class OneStepOff(_Ahead):
    """The next step's batch is generated while this one trains: its weights are one version old.

    After an evaluation two batches are under way: the next step's, complete, and the one after it, which is asked
    beside the evaluation, of the same weights that it would be asked of when the next step begins.
    """

    @property
    def due(self) -> list[_Group]:
        """This replica's groups of the batch that is trained on next."""
        return self.groups[: self.per_step // self.layout.shares]

    def next(self, step: int) -> Collected:
        """See Schedule.next."""
        total = self.config.training.steps
        refreshed: dict[str, float] = {}
        if not self.groups:
            refreshed = self.engine.refresh(step)
            self.ask(self.per_step)
        elif self.unasked:
            refreshed = self.engine.refresh(step)
            self.ask_restored()
        began = time.perf_counter()
        self.wait_for(self.due, step)
        waited = time.perf_counter() - began
        rollouts = [self.ready.pop(k) for g in self.due for k in self.keys(g)]
        collected = self.finish(rollouts, waited, step)
        if step + 1 < total and not self.groups:
            for name, value in self.engine.refresh(step).items():
                refreshed[name] = refreshed.get(name, 0.0) + value
            self.ask(self.per_step)
        collected.metrics |= refreshed
        return collected

    def settle(self, version: int) -> None:
        """See Schedule.settle. Answers may be one version old: nothing is under way across two updates. What was asked
        of the live weights already is asked anew after a resume, of the same weights."""
        if self.groups:
            self.wait_for(self.due, version)

    def make_room(self, version: int) -> None:
        """See Schedule.make_room. Servers hold one version of the weights: what older ones still work on is waited for,
        as the next step does, and the batch after it is asked now, so that the evaluation runs beside rollouts."""
        if not self.groups:
            return
        self.wait_for(self.due, version)
        self.engine.refresh(version)
        if version + 1 < self.config.training.steps and len(self.groups) == len(self.due):
            self.ask(self.per_step)


class Partial(_Ahead):
    """More prompts are under way than a step needs; those that are not finished go on with the next weights."""

    def next(self, step: int) -> Collected:
        """See Schedule.next."""
        shares = self.layout.shares
        remaining = self.config.training.steps - step
        refreshed = self.engine.refresh(step)
        self.ask_restored()
        spare = math.ceil(self.per_step * self.config.rollout.over_sampling / shares) * shares
        wanted = min(self.per_step + spare, self.per_step * remaining)
        self.ask(max(wanted - sum(self.load), 0))
        quota = self.per_step // shares
        began = time.perf_counter()

        def complete(done: Mapping[int, Rollout]) -> list[_Group]:
            return [g for g in self.groups if all(k in done or k in self.ready for k in self.keys(g))]

        def choose(done: Mapping[int, Rollout]) -> list[int]:
            return [k for g in complete(done)[:quota] for k in self.keys(g) if k in done]

        taken = self.engine.collect(lambda done: len(complete(done)) >= quota, choose, step)
        waited = time.perf_counter() - began
        self.ready |= {r.key: r for r in taken}
        chosen = complete({})[:quota]
        rollouts = [self.ready.pop(k) for g in chosen for k in self.keys(g)]
        collected = self.finish(rollouts, waited, step)
        collected.metrics |= refreshed
        return collected


def _packed(rollout: Rollout) -> dict[str, Any]:
    """A rollout for a checkpoint, in 11 bytes a token."""
    return {
        "key": rollout.key,
        "tokens": base64.b64encode(np.asarray(rollout.tokens, np.int32).tobytes()).decode(),
        "logprobs": base64.b64encode(np.asarray(rollout.logprobs, np.float32).tobytes()).decode(),
        "finished": rollout.finished,
        "version": rollout.version,
        "spans": [list(span) for span in rollout.spans],
    }


def _unpacked(packed: Mapping[str, Any], prompt: tuple[int, ...]) -> Rollout:
    tokens = np.frombuffer(base64.b64decode(packed["tokens"]), np.int32)
    logprobs = np.frombuffer(base64.b64decode(packed["logprobs"]), np.float32)
    spans = tuple((int(v), int(n)) for v, n in packed["spans"])
    return Rollout(
        packed["key"], prompt, tuple(tokens.tolist()), logprobs, packed["finished"], packed["version"], spans
    )
