"""Everything a run needs, put together and checked before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_mcore.config.data_checks import evaluates, plugins_of, uses_rl
from bridge_mcore.config.schema import Config
from bridge_mcore.data.pairs import EncodedPrompt
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.problems import source_name
from bridge_mcore.data.sampler import ShuffledSampler
from bridge_mcore.data.stops import load_tokenizer, stop_token_ids
from bridge_mcore.data.templates import EncodedTrace, PromptTemplate
from bridge_mcore.errors import ConfigError, DataError
from bridge_mcore.evaluation.evaluate import HeldOut
from bridge_mcore.methods import make_method
from bridge_mcore.methods.base import RL, SFT, Method
from bridge_mcore.model.families import find_family
from bridge_mcore.monitoring.progress import phase, say
from bridge_mcore.platform.device import Platform
from bridge_mcore.platform.distributed import Layout
from bridge_mcore.rewards.golds import check_golds
from bridge_mcore.rewards.judge import Judge
from bridge_mcore.rewards.mixed import Rewards, settings_of
from bridge_mcore.rollout.embedded import EmbeddedEngine
from bridge_mcore.rollout.engine import Engine, SamplingParams
from bridge_mcore.rollout.remote.build import EngineRoom
from bridge_mcore.training.collect import Collector
from bridge_mcore.training.data_record import DataRecord
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import Policy, build_policy, lora_of
from bridge_mcore.training.run_data import (
    check_contradictions,
    evaluated_tokens,
    read_held_out,
    read_prompts,
    read_traces,
)
from bridge_mcore.training.same_run import SameRun, model_facts, tokenizer_digests
from bridge_mcore.training.saved import SavedRollouts
from bridge_mcore.training.schedule import Schedule, make_schedule
from bridge_mcore.training.step import Updater

_RL_ORDER, _SFT_ORDER = 1, 2  # offsets of the run's seed


@dataclass
class Session:
    """A run's parts on this rank."""

    config: Config
    platform: Platform
    layout: Layout
    source: Path
    policy: Policy
    method: Method
    updater: Updater
    collector: Collector
    #: of π(θ̂, w)'s own rollouts; the same one where θ and θ̂ take turns
    auxiliary_collector: Collector
    schedule: Schedule
    prompts: list[EncodedPrompt]
    traces: list[EncodedTrace]
    prompt_order: ShuffledSampler
    trace_order: ShuffledSampler
    evaluation: dict[str, HeldOut]
    record: DataRecord
    run: SameRun
    #: judges evaluations, without noise
    examiner: Judge
    sampling: SamplingParams

    @property
    def engines(self) -> list[Engine]:
        """The run's engines, each once."""
        engines = [self.collector.engine, self.auxiliary_collector.engine]
        return engines[:1] if engines[0] is engines[1] else engines

    def position(self) -> dict[str, Any]:
        """Data position, for a checkpoint."""
        return {
            "prompts": self.prompt_order.state_dict(),
            "traces": self.trace_order.state_dict(),
            "rollouts": self.schedule.state(),
        }

    def restore_position(self, state: dict[str, Any]) -> None:
        """Go on where `position` was taken."""
        self.prompt_order.load_state_dict(state["prompts"])
        self.trace_order.load_state_dict(state["traces"])
        self.schedule.restore(state.get("rollouts", []))


@contextmanager
def open_session(config: Config, platform: Platform, layout: Layout, source: Path, run: SameRun) -> Iterator[Session]:
    """Start servers, load data, model and verifier; anything that would fail later fails here. What was started ends
    with the context. run: what a resumed run must find unchanged."""
    method = make_method(config)
    _, shape = find_family(source)
    context = min(config.training.max_length or shape.max_positions, shape.max_positions)
    adapter_path = config.adapter.path if method.uses_adapter else None
    lora = lora_of(config, shape, adapter_path) if method.uses_adapter else None
    with ExitStack() as stack:
        room = None
        needed = (uses_rl(config) or evaluates(config)) and config.debug.only != "training"
        if config.rollout.engine != "embedded" and needed:
            # First of all: servers start while data and model are loaded.
            most = max(evaluated_tokens(config), default=0)
            wide = context if uses_rl(config) and most <= config.rollout.max_new_tokens else context + most
            room = EngineRoom(config, platform, layout, source, shape, lora, min(wide, shape.max_positions))
            stack.callback(room.close)
            context = min(context, room.context)
        yield from _open(config, platform, layout, source, run, method, context, room, stack)


def _open(
    config: Config,
    platform: Platform,
    layout: Layout,
    source: Path,
    run: SameRun,
    method: Method,
    context: int,
    room: EngineRoom | None,
    stack: ExitStack,
) -> Iterator[Session]:
    """See `open_session`."""
    _, shape = find_family(source)

    def shown(text: str) -> Any:
        return phase(text) if layout.is_main else nullcontext()

    with shown("reading the data"):
        tokenizer = load_tokenizer(source, shape.vocab_size)
        template = PromptTemplate(tokenizer, config.data.template, config.data.system_prompt, config.data.instruction)
        stops = stop_token_ids(source, template, config.rollout.stop_token_ids)
        needed = frozenset().union(*(method.components(s) for s in range(config.training.steps)))
        new = config.rollout.max_new_tokens
        record = DataRecord(config)
        prompts = read_prompts(config, tokenizer, context, record) if RL in needed else []
        traces = read_traces(config, tokenizer, context, record) if SFT in needed else []
        evaluation: dict[str, HeldOut] = {}
        # What is evaluated is not trained on: training.max_length does not bound it.
        whole = shape.max_positions if room is None else room.context
        for number, most in enumerate(evaluated_tokens(config)):
            held_out = config.data.evaluation[number]
            name = source_name(held_out)
            if name in evaluation:
                raise ConfigError(
                    f"two evaluation sets are called '{name}'; give them different data.evaluation.N.name"
                )
            asked = read_held_out(config, number, tokenizer, whole, record)
            params = SamplingParams(
                most, held_out.temperature, 1.0, stops, config.run.seed, stop_texts=template.stop_texts
            )
            evaluation[name] = HeldOut(asked, params, held_out.answers, held_out.every)
        run.inputs(record.entries, tokenizer_digests(source), model_facts(shape, stops))
        _check_held_out([*(p.problem for p in prompts), *(t.problem for t in traces if t.problem)], evaluation)
        judged = [p.problem for found in (prompts, *(held.prompts for held in evaluation.values())) for p in found]
        remarks = check_golds(judged)
        if layout.is_main:
            check_contradictions(config, record)
            remarks = [*record.lines(), *remarks]
    with shown(f"loading {source}"):
        policy = build_policy(
            config,
            platform,
            source,
            adapter=method.uses_adapter,
            auxiliary=method.uses_auxiliary,
            reference=RL in needed and config.objective.kl_coefficient > 0,
            adapter_path=config.adapter.path if method.uses_adapter else None,
        )
    rewards = Rewards(settings_of(config.reward, plugins_of(config)))
    stack.callback(rewards.close)
    if layout.is_main:  # what cannot be judged is said now; the processes of other ranks start when they are needed
        for remark in remarks:
            say(remark)
        rewards.prepare({problem.reward for problem in judged})

    def decode(tokens: Any) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True)

    runner = PassRunner(policy, config.objective, config.training.max_tokens_per_microbatch)
    engines: list[Engine] = [EmbeddedEngine(policy.chunks, config.rollout.batch_size, decode)]
    if room is not None:
        with shown(f"waiting for {config.rollout.engine}"):
            remote = room.open(policy.live_source(), runner.score_prompts, decode)
        for engine in remote:
            stack.callback(engine.close)
        engines = list(remote)
    judge = Judge(rewards, decode, stop_texts=template.stop_texts)
    collectors = [Collector(config, engine, judge, layout) for engine in engines]
    seed = config.run.seed
    prompt_order = ShuffledSampler(max(len(prompts), 1), seed + _RL_ORDER)
    rollout = config.rollout
    sampling = SamplingParams(
        new, rollout.temperature, rollout.top_p, stops, seed, rollout.top_k, stop_texts=template.stop_texts
    )
    schedule: Schedule
    if config.debug.only == "training":
        assert config.debug.rollouts is not None
        schedule = SavedRollouts(config.debug.rollouts)
    else:
        name = config.rollout.schedule if room is not None else "synchronous"  # without an engine nobody rolls out
        schedule = make_schedule(name, config, collectors[0], prompts, prompt_order, sampling)
    # Answers of older weights differ from the trainer's by more than the engine does: there the probe watches.
    gap = config.rollout.max_logprob_gap if config.rollout.schedule == "synchronous" else None
    yield Session(
        config=config,
        platform=platform,
        layout=layout,
        source=source,
        policy=policy,
        method=method,
        updater=Updater(policy, runner, config.auxiliary, config.rollout, gap),
        collector=collectors[0],
        auxiliary_collector=collectors[-1],
        schedule=schedule,
        prompts=prompts,
        traces=traces,
        prompt_order=prompt_order,
        trace_order=ShuffledSampler(max(len(traces), 1), seed + _SFT_ORDER),
        evaluation=evaluation,
        record=record,
        run=run,
        examiner=Judge(rewards, decode, noise=False, stop_texts=template.stop_texts),
        sampling=sampling,
    )


def _check_held_out(problems: list[Problem], evaluation: dict[str, HeldOut]) -> None:
    """Evaluation on training problems would measure memory: refuse it."""
    trained = {problem.prompt for problem in problems}
    for name, held_out in evaluation.items():
        shared = [p.problem for p in held_out.prompts if p.problem.prompt in trained]
        if shared:
            raise DataError(
                f"{len(shared)} of {len(held_out.prompts)} problems of evaluation set '{name}' are training prompts, "
                f"the first: {shared[0]}; use another split or `limit`"
            )
