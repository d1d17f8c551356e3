"""Worker extension for a vLLM server: takes new weights from shared memory, CUDA IPC or a process group.

Runs inside the server's own environment (`--worker-extension-cls bridge_vllm_worker.BridgeWorkerExtension`, with this
folder, which holds nothing else, on PYTHONPATH), so it imports nothing of bridge_mcore. Every method is called through
`/collective_rpc`, and each worker answers a dict: `{"error": message}` after a failure. Checked with vLLM 0.32.0.

One update is `bridge_begin`, any number of loads, `bridge_finish`. Weights have Hugging Face names and full shapes;
vLLM fuses and shards them. Entries are `[name, dtype, shape, start_byte]`, with `start_byte` a multiple of 16.
"""

import base64
import contextlib
import functools
import glob
import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch

Entry = list[Any]

# What torch's reduce_tensor puts into the arguments of a CUDA tensor; pickle could otherwise call anything.
_IPC_GLOBALS = {
    ("torch", "Tensor"): torch.Tensor,
    ("torch", "Size"): torch.Size,
    ("torch", "uint8"): torch.uint8,
    ("torch.storage", "TypedStorage"): torch.storage.TypedStorage,
}


class _IpcUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _IPC_GLOBALS:
            raise pickle.UnpicklingError(f"a CUDA IPC handle must not contain {module}.{name}")
        return _IPC_GLOBALS[module, name]


def _reported(method: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Answer an exception as `{"error": message}`.

    vLLM stops reading the workers' answers at the first exception, and then takes the unread ones for the answers to
    the next call.
    """

    @functools.wraps(method)
    def answer(*args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    return answer


def _views(buffer: torch.Tensor, entries: list[Entry]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the named tensors inside a uint8 buffer [n], without copying; ValueError for one that does not fit."""
    for name, dtype_name, shape, start in entries:
        dtype = getattr(torch, dtype_name, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{name}: unknown dtype {dtype_name!r}")
        end = start + torch.Size(shape).numel() * dtype.itemsize
        if start % 16 or start < 0 or end > buffer.numel():
            raise ValueError(
                f"{name}: bytes {start} to {end} do not fit a bucket of {buffer.numel()} (16-byte aligned)"
            )
        yield name, buffer[start:end].view(dtype).view(shape)


def _restore_pending(model: torch.nn.Module) -> None:
    """Give layers that an update has not completed their previous tensors back and forget what came for them."""
    from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            if info.kernel_tensors is not None:
                _place_kernel_tensors(layer, info)
            info.reset()
    if hasattr(model, "_original_do_torchao_reload"):
        model._do_torchao_reload = model._original_do_torchao_reload


def _served(layer: Any, name: str, param: torch.Tensor) -> torch.Tensor:
    """Return the values [rows, columns] that a layer computes with, also where vLLM's CPU build packed its weight."""
    if name != "weight" or not hasattr(layer, "cpu_linear"):
        return param
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    # The packed form has no accessor and the parameter may be empty; multiplying by the identity is exact.
    like = param if param.numel() else get_layerwise_info(layer).restore_metadata[0]["weight"]
    eye = torch.eye(like.shape[1], dtype=like.dtype)
    return torch.cat([layer.cpu_linear(rows.contiguous(), param, None) for rows in eye.split(512)]).T


def _repack(model: torch.nn.Module) -> None:
    """Pack again what the CPU build packed from a parameter that it kept: a tied head gets no weights of its own."""
    layers: Iterable[Any] = model.modules()
    for layer in layers:
        if hasattr(layer, "cpu_linear") and layer.weight.numel():
            layer.quant_method.process_weights_after_loading(layer)


def _leave_out_head(model: torch.nn.Module) -> None:
    """Have adapters skip the output layer, for which ours have nothing.

    vLLM's CPU code ends the server there when log-probabilities of a prompt are asked in a batch of several requests.
    """
    for layer in model.modules():
        wrapper = getattr(layer, "punica_wrapper", None)
        if wrapper is not None:
            wrapper.add_lora_logits = lambda *_, **__: None


class BridgeWorkerExtension:
    """Mixed into vLLM's worker class; the names must not collide with the worker's own."""

    device: torch.device
    rank: int
    model_runner: Any
    vllm_config: Any
    _bridge_version: str | None = None
    _bridge_expected: frozenset[str] = frozenset()
    _bridge_loaded: set[str] | None = None
    _bridge_groups: dict[str, Any] | None = None

    @contextlib.contextmanager
    def _bridge_guard(self) -> Iterator[None]:
        """Run a step of an update; after an error no update is open and no version is claimed."""
        from vllm.config import set_current_vllm_config

        try:
            with torch.no_grad(), set_current_vllm_config(self.vllm_config):
                yield
        except BaseException:
            self._bridge_version = None
            if self._bridge_loaded is not None:
                self._bridge_loaded = None
                _restore_pending(self.model_runner.get_model())
            raise

    def _bridge_feed(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
        """Load tensors that nobody else will write to: vLLM keeps them until a layer is complete. Return how many."""
        if self._bridge_loaded is None:
            raise RuntimeError("no update is open: call bridge_begin first")
        count = 0

        def counted() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal count
            for count, item in enumerate(tensors, start=1):  # noqa: B007
                yield item

        self._bridge_loaded.update(self.model_runner.get_model().load_weights(counted()) or ())
        return count

    def _bridge_load(self, buffer: torch.Tensor, entries: list[Entry]) -> dict[str, Any]:
        return {"tensors": self._bridge_feed(_views(buffer, entries)), "bytes": buffer.numel()}

    @_reported
    def bridge_begin(self) -> dict[str, Any]:
        """Open an update; one left open by a trainer that died is dropped. Generation must be paused."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        model = self.model_runner.get_model()
        # Also what a failed reload_weights left behind.
        _restore_pending(model)
        _leave_out_head(model)
        # Only before the reload starts is a tied parameter listed once.
        self._bridge_expected = frozenset(n.replace(".base_layer.", ".") for n, _ in model.named_parameters())
        self._bridge_version = None
        self._bridge_loaded = set()
        with self._bridge_guard():
            initialize_layerwise_reload(model)
        return {"open": True}

    @_reported
    def bridge_load_disk(self, path: str) -> dict[str, Any]:
        """Load every safetensors file of a Hugging Face directory; unlike vLLM's reload, it must be complete."""
        from safetensors import safe_open

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            for file in files:
                with safe_open(file, framework="pt") as handle:
                    for name in handle.keys():  # noqa: SIM118
                        yield name, handle.get_tensor(name)

        with self._bridge_guard():
            files = sorted(glob.glob(os.path.join(glob.escape(path), "*.safetensors")))
            if not files:
                raise FileNotFoundError(f"no safetensors files in {path}")
            return {"tensors": self._bridge_feed(tensors()), "bytes": sum(map(os.path.getsize, files))}

    @_reported
    def bridge_load_shared(self, path: str, entries: list[Entry]) -> dict[str, Any]:
        """Load tensors from a file (the trainer's memory), which may be changed or removed as soon as this returns."""
        with self._bridge_guard():
            size = os.path.getsize(path)
            mapped = torch.from_file(path, shared=False, size=size, dtype=torch.uint8)
            buffer = mapped.to(self.device, copy=True)
            del mapped
            return self._bridge_load(buffer, entries)

    @_reported
    def bridge_load_ipc(self, handle: str | list[str], entries: list[Entry]) -> dict[str, Any]:
        """Load tensors from a CUDA buffer of a process on this host, which may be reused as soon as this returns.

        Args:
            handle: base64 of the pickled arguments from `reduce_tensor(buffer)[1]`, buffer being uint8 [n]; a list
                has one handle per worker, by rank in the server.
            entries: what is in the buffer.
        """
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        with self._bridge_guard():
            text = handle if isinstance(handle, str) else handle[self.rank]
            args = list(_IpcUnpickler(io.BytesIO(base64.b64decode(text))).load())
            # Position 6 is the sender's device index, which this process may number differently.
            args[6] = self.device.index
            with torch.cuda.device(self.device):
                shared = rebuild_cuda_tensor(*args)
                if shared.dtype != torch.uint8 or shared.dim() != 1:
                    raise ValueError(f"expected a flat uint8 tensor, got {shared.dtype} {list(shared.shape)}")
                buffer = shared.clone()
                torch.cuda.synchronize()
                del shared
                return self._bridge_load(buffer, entries)

    @_reported
    def bridge_join(
        self,
        address: str,
        port: int,
        rank_offset: int,
        world_size: int,
        name: str,
        backend: str,
        timeout_s: float = 300.0,
    ) -> dict[str, Any]:
        """Join a process group of the trainer (rank 0, which serves the store) and the workers of all servers.

        Args:
            address: host of the store.
            port: port of the store.
            rank_offset: rank of this server's first worker.
            world_size: trainer included.
            name: of the group; prefixes its keys in the store.
            backend: gloo or nccl.
            timeout_s: for joining and for every broadcast.
        """
        from torch.distributed import PrefixStore, rendezvous
        from torch.distributed.distributed_c10d import Backend, _new_process_group_helper, _world

        groups = self._bridge_groups = self._bridge_groups or {}
        if name in groups:
            raise ValueError(f"already a member of group {name!r}: call bridge_leave first")
        timeout = timedelta(seconds=timeout_s)
        parallel = self.vllm_config.parallel_config
        rank = rank_offset + parallel.data_parallel_index * parallel.world_size + self.rank
        host = f"[{address}]" if ":" in address else address
        store, rank, world_size = next(rendezvous(f"tcp://{host}:{port}", rank, world_size, timeout=timeout))
        store.set_timeout(timeout)
        # With a device bound to vLLM's default group, torch would split the new communicator from vLLM's own.
        default: Any = torch.distributed.group.WORLD
        group_name: Any = name
        bound, default.bound_device_id = default.bound_device_id, None
        try:
            # An empty list of ranks makes a group of its own, next to the default one.
            group, _ = _new_process_group_helper(
                world_size, rank, [], Backend(backend), PrefixStore(name, store), group_name=group_name, timeout=timeout
            )
        finally:
            default.bound_device_id = bound
        _world.pg_group_ranks[group] = {i: i for i in range(world_size)}
        groups[name] = group
        return {"rank": rank, "world_size": world_size}

    @_reported
    def bridge_receive(self, name: str, entries: list[Entry], total_bytes: int) -> dict[str, Any]:
        """Take part in a broadcast of one bucket, uint8 [total_bytes], from rank 0 and load the tensors in it."""
        from torch.distributed import BroadcastOptions

        with self._bridge_guard():
            group = (self._bridge_groups or {}).get(name)
            if group is None:
                raise ValueError(f"not a member of group {name!r}: call bridge_join first")
            # The entries are checked after the broadcast: a worker that stays away would leave the others waiting.
            buffer = torch.empty(total_bytes, dtype=torch.uint8, device=self.device)
            options = BroadcastOptions()
            options.rootRank = 0
            options.rootTensor = 0
            group.broadcast([buffer], options).wait()
            return self._bridge_load(buffer, entries)

    @_reported
    def bridge_leave(self, name: str) -> dict[str, Any]:
        """Leave a group; not being a member is no error, so that a trainer can clean up after a failure."""
        group = (self._bridge_groups or {}).pop(name, None)
        if group is not None:
            torch.distributed.destroy_process_group(group)
        return {"left": group is not None}

    @_reported
    def bridge_finish(self, version: str | None = None, complete: bool = True) -> dict[str, Any]:
        """Apply the update and label it. Caches of keys and values are not touched: reset them over HTTP.

        It is an error if no update is open, a layer came in part, or (with `complete`) a parameter did not come.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        with self._bridge_guard():
            if self._bridge_loaded is None:
                raise RuntimeError("no update is open: call bridge_begin first")
            model = self.model_runner.get_model()
            # Names alone do not show a fused tensor of which only a part came. Rows that pad the vocabulary never come.
            partial = [
                path
                for path, layer in model.named_modules()
                if not isinstance(layer, VocabParallelEmbedding)
                and 0 < (info := get_layerwise_info(layer)).load_numel < (info.load_numel_total or 0)
            ]
            missing = sorted(self._bridge_expected - self._bridge_loaded) if complete else []
            if partial or missing:
                raise RuntimeError(f"incomplete update: missing {missing[:8]}, in part {partial[:8]}")
            finalize_layerwise_reload(model, self.vllm_config.model_config)
            _repack(model)
            self._bridge_loaded = None
            self.model_runner.reset_lora_state()
            self.model_runner.reset_encoder_cache()
            self.model_runner.reset_mm_cache()
            if self.device.type != "cpu":
                torch.accelerator.synchronize()
            self._bridge_version = version
        return self.bridge_version()

    @_reported
    def bridge_abort(self) -> dict[str, Any]:
        """Drop an open update; layers that were complete keep their new weights, so no version is claimed."""
        was_open, self._bridge_loaded = self._bridge_loaded is not None, None
        if was_open:
            self._bridge_version = None
            _restore_pending(self.model_runner.get_model())
        return {"aborted": was_open}

    @_reported
    @torch.no_grad()
    def bridge_checksums(self) -> dict[str, str]:
        """Return the SHA-256 of the bytes of every parameter, by vLLM's name without `.base_layer`.

        Each worker answers for its shard: fused (qkv_proj, gate_up_proj), with the vocabulary padded, a tied parameter
        under each of its names. Zeros count as positive: the trainer hashes `tensor + 0`.
        """
        digests: dict[str, str] = {}
        for path, layer in self.model_runner.get_model().named_modules():
            for name, param in layer.named_parameters(recurse=False):
                values = (_served(layer, name, param).detach() + 0).cpu().contiguous()
                key = f"{path}.{name}".replace(".base_layer.", ".")
                digests[key] = hashlib.sha256(values.view(-1).view(torch.uint8).numpy().data).hexdigest()
        return digests

    @_reported
    def bridge_set_version(self, version: str | None) -> dict[str, Any]:
        """Label the weights that the worker holds."""
        self._bridge_version = version
        return self.bridge_version()

    @_reported
    def bridge_version(self) -> dict[str, Any]:
        """Return the label: None after a restart, during an update and after one that failed."""
        return {"version": self._bridge_version, "pid": os.getpid()}
