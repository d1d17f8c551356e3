"""The one place that knows which device the process runs on, and with which kernels.

The device is an explicit choice (`device: cpu | cuda`), never a guess: the CPU can be chosen on a GPU machine.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
from dataclasses import dataclass

import torch

from bridge_mcore.errors import ConfigError
from bridge_mcore.platform.quiet import quieten
from bridge_mcore.platform.ranks import host_memory


@dataclass(frozen=True)
class Platform:
    """What the rest of the code may ask about the hardware."""

    device: torch.device
    backend: str  # of torch.distributed: gloo, or nccl (RCCL under ROCm)
    kind: str  # cpu | cuda | rocm

    def synchronize(self) -> None:
        """Wait for queued kernels, so that a clock read afterwards is right."""
        if self.kind != "cpu":
            torch.cuda.synchronize()

    def host_memory(self, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised host memory of this shape and dtype: pinned where there is a device to copy to and from."""
        return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=self.kind != "cpu")

    def memory_gib(self) -> float:
        """Peak memory of this process, GiB: device memory allocated, or resident memory on CPU."""
        if self.kind != "cpu":
            return torch.cuda.max_memory_allocated() / 2**30
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def reset_peak(self) -> None:
        """Free cached memory and let `memory_gib` begin anew, where the system can (Linux, and GPUs)."""
        gc.collect()
        if self.kind != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")

    def total_gib(self) -> float:
        """Memory of this process's GPU, or of the machine on CPU, GiB."""
        if self.kind != "cpu":
            return torch.cuda.get_device_properties(self.device).total_memory / 2**30
        return host_memory()

    def kernels(self) -> dict[str, bool]:
        """Optional fused-kernel packages that are importable; PyTorch's own kernels are used where they are not."""
        packages = {"transformer_engine": "transformer_engine", "apex": "apex", "flash_attn": "flash_attn"}
        return {name: importlib.util.find_spec(package) is not None for name, package in packages.items()}

    @property
    def has_transformer_engine(self) -> bool:
        """Whether layers may be Transformer Engine's: it is installed, and there is an NVIDIA GPU to run them."""
        return self.kind == "cuda" and self.kernels()["transformer_engine"]

    def describe(self) -> str:
        """One line for the start of a run: device, versions, and which fused kernels were found."""
        import megatron.core

        name = "CPU" if self.kind == "cpu" else torch.cuda.get_device_name(self.device)
        found = [k for k, there in self.kernels().items() if there and self.kind != "cpu"]
        kernels = f"fused kernels: {', '.join(found)}" if found else "PyTorch's kernels"
        return (
            f"{name}, {self.backend}, torch {torch.__version__}, megatron-core {megatron.core.__version__}, {kernels}"
        )


def setup_device(device: str, threads: int = 1) -> Platform:
    """Prepare this process for `device` ("cpu" or "cuda"); call it once, before a model is built.

    Raises ConfigError if CUDA is asked for and not there.
    """
    quieten()
    if device == "cpu":
        from bridge_mcore.platform import cpu

        torch.set_num_threads(threads)
        cpu.install()
        return Platform(torch.device("cpu"), "gloo", "cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "device: cuda was chosen, but torch sees no GPU; say device=cpu, or install torch for CUDA/ROCm"
        )
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {index} has no GPU: this host shows {torch.cuda.device_count()}; "
            "start fewer processes per node"
        )
    torch.cuda.set_device(index)
    return Platform(torch.device("cuda", index), "nccl", "rocm" if torch.version.hip else "cuda")
