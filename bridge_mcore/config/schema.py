"""The configuration of a run: typed, closed (no unknown keys), documented key by key.

Nothing heavy is imported, so that a config is checked before torch is loaded. Units are in the descriptions; the
defaults are the paper's where the paper gives one (PAPER.md section 4.1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from bridge_mcore.config.engines import Debug, Rollout, Servers, Sync
from bridge_mcore.config.expected import Expected
from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.rewards import Reward, RewardName
from bridge_mcore.config.types import (
    Allowed,
    Betas,
    ClipRange,
    Count,
    Device,
    DType,
    Epsilon,
    Fraction,
    LearningRate,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Processes,
    Section,
    Seed,
    SizeRange,
    Temperature,
    Template,
    Text,
    Tokens,
    UserPath,
    Width,
    expanded,
)

#: LoRA targets by Megatron module, and the HF projections that each one fuses.
LORA_HOSTS = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
LORA_PROJECTIONS = tuple(p for projections in LORA_HOSTS.values() for p in projections)

METHODS = ("bridge", "rl_zero", "sft", "cold_start")
RESUME_WORDS = ("never", "auto", "restart")


class Run(Section):
    directory: UserPath = Field(Path("runs/run"), description="where everything the run writes goes")
    seed: int = Field(0, ge=0, le=2**40, description="seeds initialisation, shuffling and sampling")
    resume: Annotated[str, Allowed("never | auto | restart | a path")] = Field(
        "never",
        description="never: refuse a directory that holds a run; auto: go on from its newest checkpoint, or start; "
        "restart: keep the old run as NAME.old-N and start anew; or the path of one checkpoint",
    )
    resume_changes: Literal["refuse", "allow"] = Field(
        "refuse",
        description="resuming with other data, tokenizer, architecture, adapter, dtype, template or reward than the "
        "checkpoint's run: refuse, or allow and say it",
    )
    wait_seconds: NonNegativeFloat = Field(
        120.0,
        description="a resuming run waits so long for a process that still writes run.directory (a requeued job's "
        "predecessor) before it gives up",
    )
    threads: Processes = Field(1, description="CPU threads per process (OMP_NUM_THREADS)")

    @field_validator("resume")
    @classmethod
    def _expanded(cls, resume: str) -> str:
        return resume if resume in RESUME_WORDS else str(expanded(resume))


class WarmStart(Section):
    """Plain SFT that makes a generated model able to start: it stands for pre-training."""

    steps: NonNegativeInt = Field(300, description="optimizer steps; 0 leaves the weights random")
    batch_size: Count = Field(128, description="sequences of one step")
    learning_rate: LearningRate = Field(3e-3, description="largest learning rate of its AdamW")
    difficulty: SizeRange = Field((2, 5), description="smallest and largest task size it is shown")


class GeneratedModel(Section):
    """A small model made on the spot, so that a first run needs no download."""

    architecture: Literal["qwen2", "qwen3", "llama"] = Field("qwen2", description="HF model family")
    hidden_size: Width = Field(64, description="width of the residual stream")
    intermediate_size: Width = Field(256, description="width of the MLP")
    layers: Width = Field(2, description="transformer layers")
    heads: Width = Field(2, description="attention heads")
    kv_heads: Width = Field(2, description="key-value heads (grouped-query attention); divides heads")
    head_dim: Width = Field(32, description="width of one head, even; SGLang and vLLM want at least 32 on CPU")
    max_positions: Tokens = Field(512, description="context length, tokens")
    tied: bool = Field(True, description="input and output embeddings are one matrix")
    warm_start: WarmStart = Field(WarmStart(), description="SFT that stands for pre-training")


class Model(Section):
    path: UserPath | None = Field(None, description="HF checkpoint directory (config.json, safetensors, tokenizer)")
    generated: GeneratedModel | None = Field(None, description="make a small model instead of reading one")
    dtype: DType = Field("float32", description="dtype of the live weights")
    logprob_chunk_tokens: Tokens = Field(
        1024, description="tokens whose whole-vocabulary logits are held at once (fp32) for log-probabilities"
    )
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="activations computed again in the backward pass: none, attention's (selective), all (full)"
    )
    transformer_engine: Literal["auto", "off"] = Field(
        "auto", description="auto: Transformer Engine's layers where it is installed and device is cuda; off: PyTorch's"
    )


class Adapter(Section):
    """LoRA weights w of the augmented model [theta, w]."""

    rank: Width = Field(16, description="rank r of BA")
    alpha: PositiveFloat = Field(16.0, description="LoRA scale: the adapter adds (alpha / rank) BA")
    targets: list[Name] = Field(
        list(LORA_HOSTS), description="Megatron linears (linear_qkv, …) and/or HF projections (q_proj, …)"
    )
    path: UserPath | None = Field(None, description="start from this PEFT LoRA adapter instead of B = 0")

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, targets: list[Name]) -> list[str]:
        known = [*LORA_HOSTS, *LORA_PROJECTIONS]
        for target in targets:
            if target not in known:
                raise ValueError(f"unknown LoRA target '{target}'; choose from {', '.join(known)}")
        if not targets or len(set(targets)) != len(targets):
            raise ValueError("at least one LoRA target is needed, and each only once")
        return targets


class Schedule(Section):
    """A value over steps: constant, or from `start` to `end` over `steps` (default: the whole run)."""

    kind: Literal["constant", "linear", "cosine"] = Field("constant", description="shape over steps")
    value: Fraction | None = Field(None, description="of a constant schedule")
    start: Fraction | None = Field(None, description="first value of a linear or cosine schedule")
    end: Fraction | None = Field(None, description="last value of a linear or cosine schedule")
    steps: PositiveInt | None = Field(None, description="steps from start to end (default: training.steps)")


class Method(Section):
    name: Annotated[Name, Allowed(" | ".join(METHODS))] = Field(
        "bridge",
        description="bridge: Algorithm 2; rl_zero: RL alone; sft: SFT alone; cold_start: SFT, then RL",
    )
    lam: Fraction | Schedule = Field(0.5, description="λ, penalty weight of Eq. (7); a number or a schedule")
    sft_steps: PositiveInt | None = Field(None, description="cold_start: steps of SFT before RL (default: half)")

    @field_validator("name")
    @classmethod
    def _known_method(cls, name: str) -> str:
        name = name.replace("-", "_").lower()
        if name not in METHODS:
            raise ValueError(f"unknown method '{name}'{nearest(name, METHODS)}; choose from {', '.join(METHODS)}")
        return name


class Auxiliary(Section):
    """θ̂, the RL-only copy of θ."""

    mode: Literal["persistent", "lookahead"] = Field(
        "persistent", description="persistent: Algorithm 2, line 12; lookahead: one RL step ahead of θ, Eq. (10)"
    )
    rollouts: Literal["shared", "own"] = Field(
        "shared", description="shared: π(θ, w)'s rollouts score both; own: π(θ̂, w) rolls out too"
    )
    optimizer: Literal["same", "sgd"] = Field("same", description="sgd keeps no moments for θ̂")


class Objective(Section):
    """J_RL: a clipped surrogate with group-relative advantages (GRPO), minus a KL term."""

    clip_range: ClipRange = Field(0.2, description="ε, or (ε_low, ε_high)")
    kl_coefficient: NonNegativeFloat = Field(0.001, description="weight of the KL to the reference; 0: no reference")
    kl_estimator: Literal["k3"] = Field("k3", description="k3: exp(d) - d - 1 per token, d = log π_reference - log π")
    advantage_std: bool = Field(True, description="divide group-centred rewards by their standard deviation (GRPO)")
    loss_aggregation: Literal["token_mean"] = Field("token_mean", description="mean over the batch's response tokens")


class Optimizer(Section):
    name: Literal["adamw", "sgd"] = Field("adamw", description="of θ, θ̂ and w; adamw has decoupled weight decay")
    alpha: LearningRate = Field(5e-7, description="learning rate α of θ and θ̂")
    beta: LearningRate | None = Field(None, description="learning rate β of w (default: α)")
    betas: Betas = Field((0.9, 0.95), description="AdamW's decay rates of the two moments")
    eps: Epsilon = Field(1e-8, description="AdamW's ε")
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled weight decay of matrices")
    weight_decay_1d: bool = Field(False, description="also decay norms and biases")
    gradient_clip: PositiveFloat | None = Field(1.0, description="largest norm of each group's gradient (θ, θ̂, w)")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="decay of α and β to zero")
    warmup_steps: NonNegativeInt = Field(0, description="steps over which α and β rise from zero")


class Training(Section):
    steps: PositiveInt = Field(100, description="iterations k of the algorithm")
    prompts_per_step: Count = Field(64, description="RL prompts of one step, over all data-parallel ranks")
    traces_per_step: Count | None = Field(None, description="SFT traces of one step (default: prompts_per_step)")
    max_tokens_per_microbatch: Tokens = Field(8192, description="tokens of one packed micro-batch, per rank")
    max_length: Tokens | None = Field(None, description="longest sequence, tokens (default: the model's context)")


def is_task(name: str) -> bool:
    """Whether a generated task is called so."""
    return name in TASKS or (name.startswith(GYM) and name != GYM)


def _known_task(name: str) -> str:
    if not is_task(name):
        raise ValueError(f"unknown task{nearest(name, TASKS)}; there is {', '.join(TASKS)} and gym:NAME")
    return name


#: Generated tasks; `gym:NAME` is one of the package reasoning-gym.
TASKS = ("running_sums", "knights")
GYM = "gym:"
#: Smallest and largest size of their problems: terms, and people.
TASK_SIZES = {"running_sums": (1, 11), "knights": (2, 8)}
TaskName = Annotated[str, AfterValidator(_known_task), Allowed(" | ".join((*TASKS, "gym:NAME")))]


class DataSource(Section):
    """One set of problems. Exactly one of path, dataset, task says where they come from."""

    path: UserPath | None = Field(None, description="a .jsonl, .json or .parquet file")
    dataset: Name | None = Field(None, description="a Hugging Face `datasets` id")
    dataset_config: Name | None = Field(None, description="configuration (subset) of the dataset")
    dataset_revision: Name | None = Field(None, description="branch, tag or commit of the dataset")
    split: Name = Field("train", description="split of the dataset; of a generated task: train or test")
    task: TaskName | None = Field(None, description="a generated task; gym:NAME is one of reasoning-gym's")
    difficulty: SizeRange = Field((4, 8), description="of a generated task: smallest and largest size")
    size: PositiveInt = Field(1024, description="of a generated task: number of different problems")
    seed: Seed = Field(0, description="of a generated task; whatever the seeds, no test problem is in a train split")
    format: Literal["auto", "gsm8k", "math", "fields", "code", "choice"] = Field(
        "auto",
        description="how rows are read; auto: found by their columns; math: a trace without a box gets one at its end "
        "where the reward reads boxes; fields: the named columns, as they are; gsm8k: '#### n'; code: LiveCodeBench, "
        "HumanEval or MBPP; choice: GPQA or MMLU",
    )
    prompt_field: Name | None = Field(None, description="key of a row that holds the problem")
    answer_field: Name | None = Field(None, description="key of a row that holds the right answer")
    trace_field: Name | None = Field(None, description="key of a row that holds the expert trace")
    golds: Literal["all", "any"] = Field(
        "all", description="a row with a list of right answers: a response must give all of them, or any one of them"
    )
    system_messages: Literal["keep", "drop"] = Field(
        "keep", description="system messages in lists of chat messages: part of the prompt, or left out and counted"
    )
    limit: PositiveInt | None = Field(None, description="use only the first rows")
    reward: RewardName | None = Field(
        None, description="which reward judges its answers (default: each row's column `reward`, else reward.verifier)"
    )
    bad_rows: Literal["error", "skip"] = Field(
        "error",
        description="rows without a usable prompt or answer, and repeated rows, stop the run or are left out; in "
        "evaluation sets a repeated row is asked once",
    )
    name: Name | None = Field(None, description="what metrics call it")


class EvaluationSource(DataSource):
    """Held-out problems, and how often and how they are answered while a run trains."""

    every: PositiveInt | None = Field(
        None, description="steps between evaluations of this set (default: evaluation.every, and it counts in accuracy)"
    )
    answers: Count = Field(1, description="answers to each problem, whose mean counts; several need temperature")
    temperature: Temperature = Field(0.0, description="0 is greedy")
    max_new_tokens: Tokens | None = Field(None, description="default: evaluation.max_new_tokens")


class Data(Section):
    rl: DataSource | None = Field(None, description="prompts with verifiable answers")
    rl_more: list[DataSource] = Field([], description="more of them, mixed with data.rl's; each has its own reward")
    sft: DataSource | None = Field(None, description="prompts with expert traces (default: the rl sources' traces)")
    sft_more: list[DataSource] = Field([], description="more of them, mixed with data.sft's")
    evaluation: list[EvaluationSource] = Field([], description="held-out problems")
    template: Template = Field("chat", description="how a problem becomes a prompt")
    system_prompt: Text | None = Field(
        None, description="text that the template puts first; a row's own system message goes before it"
    )
    instruction: Text | None = Field(
        "auto",
        description="sentence that follows each question; auto: chat and qwen-boxed ask for steps and a box where the "
        "reward is math; null: none",
    )
    overlong: Literal["error", "drop", "cut"] = Field(
        "error", description="over the limit: stop the run, drop and count, or cut traces (and drop prompts) and count"
    )
    contradictions: Literal["report", "error"] = Field(
        "report",
        description="one question with different right answers, or a trace whose own answer is not its row's: counted "
        "and said, or stop the run",
    )


class Evaluation(Section):
    every: NonNegativeInt = Field(
        0, description="steps between evaluations of sets without `every`; 0: before and after"
    )
    before: bool = Field(True, description="evaluate before the first step")
    after: bool = Field(True, description="evaluate after the last step")
    max_new_tokens: Tokens | None = Field(None, description="default: as in rollouts")
    samples: NonNegativeInt = Field(2, description="answers printed before and after")


class Checkpoint(Section):
    every: NonNegativeInt = Field(50, description="steps between checkpoints; 0: only at the end")
    keep: Count = Field(2, description="newest checkpoints kept")
    asynchronous: bool = Field(True, description="write while training goes on; the copy in memory is made at once")
    export: bool = Field(True, description="write a merged HF checkpoint at the end")
    export_adapter: bool = Field(True, description="also write the PEFT adapter and its base")


class Parallel(Section):
    """The layout. `parallel: auto` is short for `parallel: {auto: true}`."""

    #: words that may stand in place of the section, and what they are short for
    WORDS: ClassVar[dict[str, dict[str, Any]]] = {"auto": {"auto": True}}

    auto: bool = Field(
        False,
        description="choose the sizes below, sequence and distributed_optimizer by the model, the GPUs and their "
        "memory; also written parallel=auto",
    )
    tensor: Processes = Field(1, description="processes that split each matrix")
    pipeline: Processes = Field(1, description="processes that split the layers")
    virtual_pipeline: Processes = Field(1, description="chunks of layers on each pipeline process (interleaved)")
    context: Processes = Field(1, description="processes that split each sequence")
    expert: Processes = Field(1, description="processes that split the experts; divides tensor × context × data")
    data: Processes | None = Field(None, description="default: 1, or under torchrun what the world size leaves")
    sequence: bool = Field(False, description="sequence parallelism: split norms over the tensor-parallel processes")
    distributed_optimizer: bool = Field(True, description="shard masters, moments and slots over data × context")
    overlap_grad_reduce: bool = Field(False, description="reduce gradients while the backward pass still runs")
    overlap_param_gather: bool = Field(
        False, description="gather weights while the forward pass already runs; needs overlap_grad_reduce"
    )

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return cls.WORDS.get(value, value) if isinstance(value, str) else value


class SlotOptions(Section):
    offload: Literal["none", "pinned_cpu"] = Field("none", description="where it waits while another one is live")


class Slots(Section):
    theta_hat: SlotOptions = Field(SlotOptions(), description="θ̂: fp32 masters and moments")
    reference: SlotOptions = Field(SlotOptions(), description="the KL term's reference policy: weights only")


class Monitoring(Section):
    tensorboard: bool = Field(True, description="write TensorBoard event files")
    figure: bool = Field(True, description="draw figure.png at the end")


class Config(Section):
    """A whole run."""

    run: Run = Run()
    device: Device = Field("cpu", description="where it runs; cuda is NVIDIA or AMD (ROCm)")
    model: Model = Model()
    adapter: Adapter = Adapter()
    method: Method = Method()
    auxiliary: Auxiliary = Auxiliary()
    slots: Slots = Slots()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    rollout: Rollout = Rollout()
    servers: Servers = Servers()
    sync: Sync = Sync()
    data: Data = Data()
    reward: Reward = Reward()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    parallel: Annotated[Parallel, Allowed("auto, or a section with keys such as tensor, pipeline, data")] = Parallel()
    monitoring: Monitoring = Monitoring()
    debug: Debug = Debug()
    expected: Expected | None = Field(None, description="accuracy that runs of these settings are known to end with")
