"""What a run of this project left: which model its checkpoints are of, and the LoRA weights in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bridge_mcore.checkpoint.finite import require_finite
from bridge_mcore.checkpoint.manifest import list_checkpoints
from bridge_mcore.checkpoint.megatron import Place, TensorStore
from bridge_mcore.checkpoint.peft import adapter_mappings, read_adapter_config
from bridge_mcore.config.load import load_config
from bridge_mcore.config.schema import LORA_PROJECTIONS, Config
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families.shape import ModelShape
from bridge_mcore.model.lora import LoRAShape

_W = "w/"


@dataclass(frozen=True)
class Run:
    """The run that a checkpoint belongs to."""

    directory: Path
    config: Config

    @property
    def model(self) -> Path:
        """Directory of the HF checkpoint that it started from."""
        return self.config.model.path or self.directory / "base"


def find_run(checkpoint: Path) -> Run | None:
    """The run whose `checkpoints` directory holds this one; None if it is of no run."""
    directory = checkpoint.resolve().parent.parent
    path = directory / "config.yaml"
    if not (checkpoint / "state.json").is_file() or not path.is_file():
        return None
    return Run(directory, load_config(path))


def newest_checkpoint(path: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The newest checkpoint of the run at `path`, which is said; `path` itself if it is no run.

    Raises CheckpointError for a run without one.
    """
    if not (path / "checkpoints").is_dir() or not (path / "config.yaml").is_file():
        return path
    found = list_checkpoints(path / "checkpoints")
    if not found:
        raise CheckpointError(f"{path} is a run without a checkpoint; its directory export/ may hold a model")
    say(f"· the newest checkpoint is {found[0].name}")
    return found[0]


def has_adapter(checkpoint: Path) -> bool:
    """Whether a run's checkpoint holds LoRA weights."""
    return any(key.startswith(_W) for key in TensorStore(checkpoint).tensors)


def run_adapter(checkpoint: Path, shape: ModelShape, alpha: float | None = None) -> tuple[LoRAShape, dict[str, Tensor]]:
    """The LoRA weights in a run's checkpoint: shape, and full tensors in fp32 under PEFT's names.

    Args:
        alpha: LoRA's α; None: what the run's config.yaml says (it is not in the checkpoint itself).
    Raises:
        CheckpointError: if there are none, or α is not known.
    """
    store = TensorStore(checkpoint)
    held = {key.removeprefix(_W): key for key in store.tensors if key.startswith(_W)}
    if not held:
        raise CheckpointError(f"{checkpoint} holds no adapter")
    lora = _shape_of(store, held, checkpoint, shape, alpha)
    out: dict[str, Tensor] = {}
    for mapping, full in adapter_mappings(lora, shape):
        key = held.pop(mapping.mcore, None)
        if key is None or store.shape(key) != full:
            found = "missing" if key is None else f"{store.shape(key)} instead of {full}"
            raise CheckpointError(f"{checkpoint}: {mapping.mcore} is {found}")
        out[mapping.hf[0]] = store.read(Place(key), (0, full[0])).clone()
        require_finite(mapping.mcore, out[mapping.hf[0]], checkpoint)
    if held:
        raise CheckpointError(f"{checkpoint} holds {sorted(held)[0]}, which is no part of such an adapter")
    return lora, out


def _shape_of(
    store: TensorStore, held: dict[str, str], checkpoint: Path, shape: ModelShape, alpha: float | None
) -> LoRAShape:
    run = find_run(checkpoint)
    stabilised = False
    if run is not None and alpha is None:
        alpha = run.config.adapter.alpha
        if run.config.adapter.path is not None:
            try:
                start = read_adapter_config(run.config.adapter.path, shape)
            except CheckpointError as error:
                raise CheckpointError(
                    f"the adapter that the run started from says its alpha, but cannot be read: {error}\n"
                    "give extract-adapter --alpha (of a rank-stabilised one: alpha · √rank)"
                ) from error
            alpha, stabilised = start.alpha, start.rank_stabilised
    if alpha is None:
        raise CheckpointError(f"{checkpoint} lies in no run, so that its adapter's alpha is not known; give --alpha")
    ranks = {store.shape(key)[:1] for name, key in held.items() if ".lora.A." in name}
    if len(ranks) != 1 or ranks == {()}:
        raise CheckpointError(f"{checkpoint}: its adapter has the ranks {sorted(sum(ranks, ()))}; one is needed")
    found = {name.rsplit(".", 1)[-1] for name in held}
    return LoRAShape(ranks.pop()[0], alpha, tuple(p for p in LORA_PROJECTIONS if p in found), stabilised)
