"""What a configuration that is right key by key can still get wrong: contradictions, and files that are not there.

Each check is a generator of sentences that name the keys, their values and what to change; :func:`check_config` puts
them all into one error. Nothing here imports torch or transformers: a wrong configuration is refused at once. What
the chosen method does not use is not judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bridge_mcore.config.data_checks import data_problems, evaluates, template_problems, uses_rl
from bridge_mcore.config.engine_checks import engine_problems
from bridge_mcore.config.json_file import one_line
from bridge_mcore.config.load import raise_problems
from bridge_mcore.config.machine import machine_problems
from bridge_mcore.config.model_files import (
    Sizes,
    adapter_problems,
    directory_sizes,
    has_chat_template,
    model_problems,
    model_sizes,
)
from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.outputs import directory_problem
from bridge_mcore.config.parallel import parallel_problems, share_problems, world_problems, world_size
from bridge_mcore.config.reward_checks import reward_problems
from bridge_mcore.config.schema import RESUME_WORDS, Config, Schedule

#: What a run writes into its directory.
_FILES = ("config.yaml", "data.json", "metrics.jsonl", "evaluation.jsonl", "summary.json", "figure.png")
_DIRECTORIES = (
    "base", "checkpoints", "export", "export_peft", "tensorboard", "evaluations", "cases", "rollouts", "servers",
    "sync", "failed_requests",
)  # fmt: skip
_MOST_SAMPLES = 10_000_000


def check_config(config: Config, world: int | None = None) -> None:
    """Raises one ConfigError that lists every contradiction and everything missing.

    `world` is the number of processes where it is given (torchrun); without it the layout's own is started.
    """
    sizes = model_sizes(config.model)
    world = world or world_size(config.parallel)
    problems = [
        *_model(config),
        *data_problems(config),
        *template_problems(config),
        *_method(config),
        *_objective(config),
        *_lengths(config, sizes),
        *_adapter(config, sizes),
        *reward_problems(config),
        *engine_problems(config, world),
        *parallel_problems(config.parallel, sizes),
        *world_problems(config.parallel, world),
        *share_problems(config, sizes, world),
        *machine_problems(config, sizes, world),
        *_run(config),
    ]
    raise_problems(problems, "the configuration contradicts itself or lacks something")


# --- model -----------------------------------------------------------------------------------------------------------


def _model(config: Config) -> Iterator[str]:
    model = config.model
    if model.path is None and model.generated is None:
        yield (
            "there is no model: set model.path to an HF checkpoint directory (config.json, *.safetensors, tokenizer), "
            "or model.generated={} for a small one made on the spot"
        )
    if model.path is not None and model.generated is not None:
        yield f"model.path = {model.path} and model.generated are both set; set one of them to null"
    elif model.path is not None:
        yield from model_problems(model.path, "model.path")
    if (spec := model.generated) is not None:
        if spec.heads % spec.kv_heads:
            yield (
                f"model.generated.kv_heads = {spec.kv_heads} does not divide model.generated.heads = {spec.heads}; "
                "change one of them"
            )
        if spec.head_dim % 2:
            yield f"model.generated.head_dim = {spec.head_dim} is odd; rotary embeddings need an even one"
        if spec.architecture == "qwen2" and spec.heads * spec.head_dim != spec.hidden_size:
            yield (
                f"model.generated: qwen2 needs hidden_size = heads × head_dim, and {spec.hidden_size} is not "
                f"{spec.heads} × {spec.head_dim}; change one, or take qwen3"
            )
    if config.adapter.path is not None:
        yield from adapter_problems(config.adapter.path, "adapter.path", config.adapter.rank, config.adapter.alpha)


def _adapter(config: Config, sizes: Sizes) -> Iterator[str]:
    """Ranks beyond the model's width: BA could not have them, and so large a one is a slip of the pen."""
    rank, width = config.adapter.rank, sizes.hidden_size
    if config.method.name == "bridge" and width is not None and rank > width:
        yield (
            f"adapter.rank = {rank} is more than the width of {sizes.origin} (hidden size {width}), beyond which a "
            f"larger rank adds nothing: lower it to at most {width}"
        )


# --- method and objective --------------------------------------------------------------------------------------------


def _method(config: Config) -> Iterator[str]:
    method, steps = config.method, config.training.steps
    if method.name == "bridge":
        yield from _lam(method.lam)
        if config.auxiliary.mode == "lookahead" and config.auxiliary.rollouts == "own":
            yield (
                "auxiliary.mode = lookahead and auxiliary.rollouts = own do not go together (θ̂ is made anew from "
                "the shared rollouts): choose mode persistent, or rollouts shared"
            )
    if method.name == "cold_start":
        if method.sft_steps is not None and method.sft_steps >= steps:
            yield (
                f"method.sft_steps = {method.sft_steps} leaves no RL steps of training.steps = {steps}: "
                "lower it, or raise training.steps"
            )
        elif steps < 2:
            yield "method.name = cold_start needs training.steps of at least 2: SFT, then RL"


def _lam(lam: float | Schedule) -> Iterator[str]:
    if not isinstance(lam, Schedule):
        return  # its range is checked by its type
    needed = ("value",) if lam.kind == "constant" else ("start", "end")
    for name in ("value", "start", "end"):
        value = getattr(lam, name)
        if name in needed and value is None:
            yield f"method.lam.{name} is missing: a {lam.kind} schedule needs {' and '.join(needed)}"
        elif name not in needed and value is not None:
            mend = "set method.lam.kind to linear or cosine" if lam.kind == "constant" else "use start and end"
            yield f"method.lam.{name} = {value:g} means nothing in a {lam.kind} schedule: remove it, or {mend}"


def _objective(config: Config) -> Iterator[str]:
    if not uses_rl(config):
        return
    if config.rollout.samples_per_prompt == 1:
        yield (
            "rollout.samples_per_prompt = 1: advantages compare the samples of one prompt, so a single one never gives "
            "a signal; use at least 2"
        )
    step = config.training.prompts_per_step * config.rollout.samples_per_prompt
    if step > _MOST_SAMPLES:
        yield (
            f"training.prompts_per_step × rollout.samples_per_prompt = {step:,} responses in one step, which are held "
            f"in memory together; {_MOST_SAMPLES:,} are the most"
        )
    reward = config.reward
    if reward.correct <= reward.incorrect:
        yield (
            f"reward.correct = {reward.correct:g} must be greater than reward.incorrect = {reward.incorrect:g}: "
            "otherwise wrong answers are learnt, or nothing"
        )


# --- lengths, engine, run --------------------------------------------------------------------------------------------


def inference_problems(model: Path, key: str, template: str, max_new_tokens: int) -> list[str]:
    """What keeps a checkpoint from answering prompts: `eval` and `generate` ask before they load it."""
    problems = list(model_problems(model, key))
    if problems:
        return problems
    if template == "chat" and not has_chat_template(model):
        problems.append(
            f"--template chat, but the tokenizer in {model} has no chat template; use plain, abel or qwen-boxed"
        )
    context = directory_sizes(model).context
    if context is not None and max_new_tokens >= context:
        problems.append(
            f"--max-new-tokens {max_new_tokens} leaves no room for a prompt in the model's context "
            f"of {context} tokens; lower it"
        )
    return problems


def _lengths(config: Config, sizes: Sizes) -> Iterator[str]:
    context, longest = sizes.context, config.training.max_length
    if context is not None and longest is not None and longest > context:
        yield (
            f"training.max_length = {longest} is more than the model's context of {context} tokens: "
            f"set it to at most {context}, or to null"
        )
    limits = [("the model's context", context)]
    new_tokens = []
    if uses_rl(config):
        new_tokens.append(("rollout.max_new_tokens", config.rollout.max_new_tokens))
        limits.append(("training.max_length", longest))
    if evaluates(config):
        own = config.evaluation.max_new_tokens
        key = "rollout.max_new_tokens" if own is None else "evaluation.max_new_tokens"
        for i, held in enumerate(config.data.evaluation):
            if held.max_new_tokens is not None:
                new_tokens.append((f"data.evaluation.{i}.max_new_tokens", held.max_new_tokens))
            else:
                new_tokens.append((key, config.rollout.max_new_tokens if own is None else own))
    for key, tokens in dict.fromkeys(new_tokens):
        for name, limit in limits:
            if name == "training.max_length" and key != "rollout.max_new_tokens":
                continue  # what is evaluated is not trained on
            if limit is not None and tokens >= limit:
                yield (
                    f"{key} = {tokens} leaves no room for a prompt in {name} of {limit} tokens: "
                    f"lower it below {limit}, by the length of the longest prompt"
                )


def _run(config: Config) -> Iterator[str]:
    directory, resume = config.run.directory, config.run.resume
    if (problem := directory_problem(directory)) is not None:
        yield f"run.directory = {one_line(directory, 200)}: {problem}"
        return
    for name in (*_FILES, *_DIRECTORIES) if resume != "restart" else ():
        path = directory / name
        if path.exists() and path.is_dir() != (name in _DIRECTORIES):
            found, wanted = ("directory", "file") if path.is_dir() else ("file", "directory")
            yield f"run.directory = {directory}: {name} is a {found}, where a run has a {wanted}; move it away"
    if resume == "never":
        if holds_run(directory):
            yield (
                f"run.directory = {directory} holds a run already: set run.resume=auto to go on with it, "
                "run.resume=restart to put it aside, or another run.directory"
            )
    elif resume not in RESUME_WORDS and not Path(resume).is_dir():
        words = ", ".join(RESUME_WORDS)
        yield f"run.resume = {resume} is no checkpoint directory{nearest(resume, RESUME_WORDS)}: give one, or {words}"


def holds_run(directory: Path) -> bool:
    """Whether a run has written here."""
    checkpoints = directory / "checkpoints"
    return (directory / "metrics.jsonl").exists() or (checkpoints.is_dir() and any(checkpoints.iterdir()))
