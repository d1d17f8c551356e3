"""The driver: one iteration is sample, roll out, verify, update (Algorithm 2, lines 2 to 15)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bridge_mcore.checkpoint.run_state import CheckpointWriter, load_state, read_extra
from bridge_mcore.config.load import dump_config
from bridge_mcore.config.schema import Config
from bridge_mcore.data.sample import Sample
from bridge_mcore.errors import CheckpointError, RunStopped, TrainingError
from bridge_mcore.methods.base import RL, SFT, THETA_HAT
from bridge_mcore.methods.schedules import rate_factor
from bridge_mcore.monitoring.metrics import missing_steps
from bridge_mcore.monitoring.progress import say
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import process_groups
from bridge_mcore.platform.stop import StopRequest
from bridge_mcore.training.case import save_case
from bridge_mcore.training.finish import Course, due_sets, finish
from bridge_mcore.training.generated import make_model
from bridge_mcore.training.run_directory import checkpoint_to_resume, has_run
from bridge_mcore.training.run_lock import run_lock
from bridge_mcore.training.same_run import SameRun, recorded
from bridge_mcore.training.saved import save_rollouts
from bridge_mcore.training.session import Session, open_session


def train(config: Config) -> None:
    """Run `config` to its end, or to a stop that leaves a checkpoint. Every rank of the layout calls it."""
    started = time.perf_counter()
    directory = config.run.directory
    platform = setup_device(config.device, config.run.threads)
    with (
        process_groups(platform, config.parallel, config.run.seed) as layout,
        run_lock(config),  # before stops are only asked for: a run that waits for its directory ends at once
        StopRequest() as stop,
    ):
        if layout.is_main:
            say(f"· {platform.describe()}")
        resume_from, remarks = checkpoint_to_resume(config)
        step, extra = read_extra(resume_from) if resume_from is not None else (0, None)
        run = SameRun(config, recorded(extra, resume_from) if resume_from is not None else None, step)
        run.check_settings()
        begins = how_it_begins(config, resume_from, run)
        source = config.model.path or directory / "base"
        if config.model.path is None and resume_from is None:
            make_model(config, platform, layout, source)
        with open_session(config, platform, layout, source, run) as session:
            course = Course(directory, started)
            if resume_from is not None:
                verified = config.run.resume == "auto"
                step, state = load_state(resume_from, session.policy, identity(session), remarks, verified)
                restore(session, course, state, resume_from)
            if layout.is_main:
                run.keep_earlier(directory, dump_config(config), session.record.text())
                for line in [*remarks, *begins, *run.lines()]:
                    say(line)
                course.open(config, step if resume_from else None)
            with CheckpointWriter(
                directory / "checkpoints", config.checkpoint.keep, asynchronous=config.checkpoint.asynchronous
            ) as writer:
                run_steps(session, step, course, stop, writer)
            if not stop.agreed and config.debug.only not in ("rollouts", "sync"):
                finish(session, course)
    if stop.agreed:
        if layout.is_main:
            say(f"stopped; go on with: bridge-mcore train {directory / 'config.yaml'} run.resume=auto")
        raise SystemExit(stop.exit_code)


def run_steps(session: Session, step: int, course: Course, stop: StopRequest, writer: CheckpointWriter) -> None:
    """Iterate from `step` to the configured number of steps; all checkpoints are complete on return."""
    config, total = session.config, session.config.training.steps
    beta = config.optimizer.beta or config.optimizer.alpha
    factor = rate_factor(config.optimizer.schedule, config.optimizer.warmup_steps, total)
    if step == 0 and config.evaluation.before and not course.accuracies and not config.debug.only:
        course.evaluate(session, 0)
    saved = step if step else None
    with course.progress(total, step, session.layout.is_main):
        while step < total and not stop.agree():
            began = time.perf_counter()
            passes = session.method.passes(step)
            position = session.position()
            try:
                samples, own, metrics = gather_samples(session, step)
            except RunStopped as error:
                # The step has changed nothing yet: it is taken again, with the same data, by the run that goes on.
                raise keep(error, "while rolling out", session, step, course, writer, position) from error
            except TrainingError as error:
                raise TrainingError(f"step {step + 1}, while rolling out: {error}") from error
            if config.debug.save_rollouts or config.debug.only == "rollouts":
                save_rollouts(config.run.directory / "rollouts", step, samples, metrics)
            if config.debug.only in ("rollouts", "sync"):
                step += 1
                metrics["seconds_step"] = time.perf_counter() - began
                metrics.pop("tokens")
                course.record(step, metrics)
                continue
            rates = (config.optimizer.alpha * factor(step), beta * factor(step))
            lam = session.method.lam(step)
            cases = config.run.directory / "cases"
            try:
                updating = time.perf_counter()
                watched = session.updater.correct(samples, own)
                session.updater.fill_reference([*samples, *(own or [])])
                referenced = time.perf_counter()
                if config.debug.save_case_every and (step + 1) % config.debug.save_case_every == 0:
                    save_case(cases / f"step_{step + 1:08d}", session.policy, samples, config, lam, *rates)
                metrics |= session.updater.update(passes, samples, *rates, own=own) | watched
            except TrainingError as error:
                case = cases / f"failed_step_{step + 1:08d}"
                save_case(case, session.policy, samples, config, lam, *rates, stepped=session.updater.stepped)
                again = f", and run it again with bridge-mcore replay {case} OUT" if session.policy.lora else ""
                raise TrainingError(
                    f"step {step + 1}: {error}\nthe step is saved: look at {case}/batch.jsonl{again}"
                ) from error
            session.platform.synchronize()
            step += 1
            metrics |= {
                **({"lam": lam} if session.method.uses_lam else {}),
                "alpha": rates[0], "beta": rates[1], "seconds_reference": referenced - updating,
                "seconds_train": time.perf_counter() - referenced, "memory_gib": session.platform.memory_gib(),
            }  # fmt: skip
            if step < total and (due := due_sets(session, step)):
                try:
                    session.schedule.make_room(step)
                    metrics |= course.evaluate(session, step, due)
                except RunStopped as error:
                    raise keep(
                        error, "while evaluating before it", session, step, course, writer, session.position()
                    ) from error
            metrics["seconds_step"] = time.perf_counter() - began
            working = metrics["seconds_step"] - metrics.get("seconds_evaluation", 0.0)
            metrics["tokens_per_second"] = metrics.pop("tokens") / working
            course.record(step, metrics)
            if step == total or (config.checkpoint.every and step % config.checkpoint.every == 0):
                save(session, step, course, writer)
                saved = step
            writer.poll()
        if saved != step and config.debug.only not in ("rollouts", "sync"):
            save(session, step, course, writer)  # a stop was asked for
        writer.finish()


def gather_samples(session: Session, step: int) -> tuple[list[Sample], list[Sample] | None, dict[str, Any]]:
    """The step's traces and rollouts, rollouts of π(θ̂, w) if the run wants its own, and metrics; the same all over."""
    config = session.config
    needed = session.method.components(step)
    metrics: dict[str, Any] = {"tokens": 0}
    samples: list[Sample] = []
    own: list[Sample] | None = None
    if config.debug.only == "sync":
        return [], None, metrics | session.collector.engine.refresh(step)
    if SFT in needed:
        count = config.training.traces_per_step or config.training.prompts_per_step
        chosen = [session.traces[i] for i in session.trace_order.take(count)]
        metrics["tokens"] += sum(len(t.tokens) for t in chosen)
        samples += [Sample(SFT, t.tokens, t.prompt_length) for t in chosen]
    if RL in needed:
        collected = session.schedule.next(step)
        metrics |= collected.metrics
        metrics["tokens"] += metrics.pop("rollout_tokens")
        samples += collected.samples
        if session.method.uses_auxiliary and config.auxiliary.rollouts == "own":
            with session.policy.live(THETA_HAT):
                refreshed = session.auxiliary_collector.engine.refresh(step, THETA_HAT)
                answers = config.training.prompts_per_step * config.rollout.samples_per_prompt
                first = (2 * step + 1) * answers  # between the numbers of π(θ, w)'s answers
                other = session.auxiliary_collector.collect(collected.prompts, first, session.sampling, step)
            own = other.samples
            metrics["reward_auxiliary"] = other.metrics["reward"]
            metrics["seconds_rollout"] += other.metrics["seconds_rollout"]
            metrics["seconds_reward"] += other.metrics["seconds_reward"]
            metrics["seconds_sync"] = metrics.get("seconds_sync", 0.0) + refreshed.get("seconds_sync", 0.0)
            metrics["tokens"] += other.metrics["rollout_tokens"]
        for engine in session.engines:
            for name, value in engine.counts().items():
                metrics[name] = metrics.get(name, 0.0) + value
    for engine in session.engines:
        metrics |= engine.rest()
    return samples, own, metrics


def identity(session: Session) -> dict[str, Any]:
    """What a checkpoint records: the method and optimizer, which a resume must repeat, and the layout's sizes."""
    config = session.config
    sizes = {**config.parallel.model_dump(exclude={"auto"}), "data": session.layout.data}
    return {**sizes, "method": config.method.name, "optimizer": config.optimizer.name}


def save(session: Session, step: int, course: Course, writer: CheckpointWriter) -> None:
    """Start writing a checkpoint."""
    try:
        session.schedule.settle(step)
    except RunStopped as error:
        raise keep(error, "while waiting for rollouts", session, step, course, writer, session.position()) from error
    write(session, step, course, writer, session.position())


def write(session: Session, step: int, course: Course, writer: CheckpointWriter, position: dict[str, Any]) -> None:
    """Start writing a checkpoint whose run goes on at `position` of the data."""
    extra = {"position": position, "course": course.state(), "run": session.run.record}
    writer.save(session.policy, step, extra, identity(session))


def keep(
    error: RunStopped,
    doing: str,
    session: Session,
    step: int,
    course: Course,
    writer: CheckpointWriter,
    position: dict[str, Any],
) -> TrainingError:
    """The step after `step` cannot be taken: save the run as it is, and return what to tell the user."""
    write(session, step, course, writer, position)
    writer.finish()
    return TrainingError(
        f"step {step + 1}, {doing}: {error}\nthe run is saved after step {step}; go on with run.resume=auto"
    )


def restore(session: Session, course: Course, state: Any, origin: Path) -> None:
    """Go on where a checkpoint was taken. Raises CheckpointError for a state that no run has written."""
    try:
        session.restore_position(state["position"])
        course.restore(state["course"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{origin}: its state of the run cannot be read: {error!r}") from error


def how_it_begins(config: Config, origin: Path | None, run: SameRun) -> list[str]:
    """What is to be said at the start of a run that goes on, or that was to. Raises DataError for damaged metrics."""
    directory = config.run.directory
    if origin is None:
        if config.run.resume == "auto" and has_run(directory):
            return [f"· {directory / 'checkpoints'} holds no checkpoint: the run starts anew, from step 1"]
        return []
    lines = [f"· resuming from {origin}, after step {run.step}"]
    if run.before is None:
        lines.append(
            "· that checkpoint does not say what run it is of: that data and model are the same is taken on trust"
        )
    if origin.absolute().parent.parent == directory.absolute():
        lines += missing_steps(directory, run.step)
    return lines
