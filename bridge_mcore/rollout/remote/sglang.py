"""SGLang's HTTP interface (0.5.23; its own /generate and weight-update endpoints, not the OpenAI ones)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bridge_mcore.rollout.engine import Request, SamplingParams
from bridge_mcore.rollout.remote.dialect import (
    Answer,
    Entry,
    GarbageAnswer,
    Group,
    LaunchOptions,
    entry_command,
    local_environment,
)
from bridge_mcore.rollout.remote.http import Http, ServerRefused
from bridge_mcore.rollout.sampling import request_seed
from bridge_mcore.rollout.sync.shared import pickled_bucket, shared_buffer

_UNSET = "default"  # what SGLang calls weights that were never updated


class SGLang:
    """See `Dialect`."""

    name = "sglang"
    reserve = 2
    sees_all_devices = True
    alignment = 1
    positive_zeros = False

    def command(self, options: LaunchOptions) -> tuple[list[str], dict[str, str]]:
        """See Dialect.command."""
        o = options
        command = [
            *entry_command(o.python, "sglang.launch_server"), "--model-path", str(o.model), "--host", o.host,
            "--port", str(o.port), "--dtype", o.dtype, "--tp-size", str(o.tensor), "--context-length", str(o.context),
            "--max-running-requests", str(o.in_flight), "--random-seed", str(o.seed % 2**31),
            "--weight-version", _UNSET, "--skip-server-warmup", "--log-level", "info", "--grammar-backend", "none",
        ]  # fmt: skip
        if not o.reads_text:
            command += ["--skip-tokenizer-init"]
        environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | local_environment(o.host)
        if o.memory_fraction is not None:
            command += ["--mem-fraction-static", str(o.memory_fraction)]
        if o.lora_rank:
            command += ["--enable-lora", "--max-lora-rank", str(o.lora_rank), "--lora-target-modules", *o.lora_targets]
            command += ["--max-loras-per-batch", "2", "--max-loaded-loras", "2"]
        if o.colocated:
            command += ["--enable-memory-saver"]
        if o.device != "cpu":
            command += ["--base-gpu-id", str(o.first_device)]
        if o.device == "cpu":
            # Without AMX kernels SGLang's CPU layers are PyTorch's; memory is taken in tokens, not as a share.
            command += [
                "--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch",
                "--disable-overlap-schedule", "--disable-cuda-graph",
                "--max-total-tokens", str(min(o.in_flight, 64) * o.context),
            ]  # fmt: skip
            if o.memory_fraction is None:
                command += ["--mem-fraction-static", "0.1"]
            if o.lora_rank:
                command += ["--lora-backend", "torch_native"]
            environment |= {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}
            if o.tensor > 1:
                environment["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(str(i) for i in range(o.tensor))
        return command + list(o.arguments), environment

    async def healthy(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.healthy."""
        await http.get(f"{url}/model_info", seconds=seconds)

    async def ready(self, http: Http, url: str, seconds: float) -> None:
        """Return once the server generates: /health makes a token."""
        await http.get(f"{url}/health", seconds=seconds)
        with suppress(ServerRefused):
            # On CPU every flush_cache collects garbage: half a second, unless what the start has made is left out.
            await http.post(f"{url}/freeze_gc", seconds=seconds)

    async def generate(
        self,
        http: Http,
        url: str,
        request: Request,
        params: SamplingParams,
        rid: str,
        adapter: str | None,
        seconds: float,
    ) -> tuple[Any, Answer]:
        """See Dialect.generate."""
        sampling: dict[str, Any] = {
            "max_new_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k or -1,
            "skip_special_tokens": False,
            "sampling_seed": request_seed(params.seed, request.key),
        }
        if params.stop_token_ids:
            sampling["stop_token_ids"] = list(params.stop_token_ids)
        else:
            sampling["ignore_eos"] = True
        if params.stop_texts:
            # As patterns: `stop` is looked for in as many tokens as it has when it is tokenized alone, and may be
            # sampled in more.
            sampling["stop_regex"] = [re.escape(text) for text in params.stop_texts]
        body = {
            "rid": rid, "input_ids": list(request.prompt), "sampling_params": sampling, "return_logprob": True,
            "logprob_start_len": -1,
        }  # fmt: skip
        if adapter is not None:
            body["lora_path"] = adapter
        raw = await http.post(f"{url}/generate", body, seconds=seconds)
        return raw, _parse(raw)

    async def reads_text(self, http: Http, url: str, seconds: float) -> bool:
        """See Dialect.reads_text. Without a tokenizer SGLang 0.5.23 would die of the first stop text."""
        return not (await http.get(f"{url}/server_info", seconds=seconds)).get("skip_tokenizer_init")

    async def abort(self, http: Http, url: str, rid: str) -> None:
        """See Dialect.abort."""
        await http.post(f"{url}/abort_request", {"rid": rid}, seconds=10)

    async def score(
        self, http: Http, url: str, prompts: Sequence[Sequence[int]], adapter: str | None, seconds: float
    ) -> list[np.ndarray]:
        """See Dialect.score."""
        body: dict[str, Any] = {
            "input_ids": [list(p) for p in prompts], "return_logprob": True, "logprob_start_len": 0,
            "sampling_params": {"max_new_tokens": 1, "temperature": 1.0, "ignore_eos": True},
        }  # fmt: skip
        if adapter is not None:
            body["lora_path"] = [adapter] * len(prompts)
        raw = await http.post(f"{url}/generate", body, seconds=seconds)
        try:
            scored = [np.array([x[0] for x in a["meta_info"]["input_token_logprobs"][1:]], np.float64) for a in raw]
        except (KeyError, TypeError, IndexError) as error:
            raise ServerRefused(200, f"{url} gave no log-probabilities of the prompt: {str(raw)[:300]}") from error
        return scored

    async def label(self, http: Http, url: str, seconds: float) -> str | None:
        """See Dialect.label."""
        found = (await http.get(f"{url}/model_info", seconds=seconds)).get("weight_version")
        return None if found in (None, _UNSET) else str(found)

    async def set_label(self, http: Http, url: str, label: str, seconds: float) -> None:
        """See Dialect.set_label."""
        # Left to its default, SGLang breaks off all requests that are under way.
        body = {"new_version": label, "abort_all_requests": False}
        await http.post(f"{url}/update_weight_version", body, seconds=seconds)

    async def pause(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.pause. Retracted, so that the cache of the old weights is not used with the new ones."""
        await http.post(f"{url}/pause_generation", {"mode": "retract"}, seconds=seconds)

    async def resume(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.resume."""
        await http.post(f"{url}/continue_generation", seconds=seconds)

    async def flush(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.flush."""
        await http.post(f"{url}/flush_cache", seconds=seconds)

    async def begin(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.begin."""
        try:
            await http.post(f"{url}/begin_weight_update", {"selector": "all"}, seconds=seconds)
        except ServerRefused as error:
            if "already open" not in str(error):
                raise
            # An update that was broken off left its session: the one that begins now sends all weights again.
            await http.post(f"{url}/end_weight_update", seconds=seconds)
            await http.post(f"{url}/begin_weight_update", {"selector": "all"}, seconds=seconds)

    async def end(self, http: Http, url: str, label: str, seconds: float) -> None:
        """See Dialect.end."""
        await http.post(f"{url}/end_weight_update", seconds=seconds)
        await self.flush(http, url, seconds)
        await self.set_label(http, url, label, seconds)

    async def load_directory(self, http: Http, url: str, directory: Path, label: str, seconds: float) -> None:
        """See Dialect.load_directory."""
        body = {"model_path": str(directory), "weight_version": label, "flush_cache": True}
        await http.post(f"{url}/update_weights_from_disk", body, seconds=seconds)

    def shared_buffer(self, size: int, device: torch.device) -> Tensor:
        """See Dialect.shared_buffer."""
        return shared_buffer(size, device)

    def shared_payload(self, bucket: Tensor, entries: Sequence[Entry], ranks: int) -> Any:
        """See Dialect.shared_payload. One pickle of handles for each rank: a CUDA handle may be opened once."""
        return [pickled_bucket(bucket, entries) for _ in range(ranks)]

    async def load_shared(self, http: Http, url: str, payload: Any, seconds: float) -> None:
        """See Dialect.load_shared."""
        body = {"serialized_named_tensors": payload, "load_format": "flattened_bucket", "flush_cache": False}
        await http.post(f"{url}/update_weights_from_tensor", body, seconds=seconds)

    async def join(self, http: Http, url: str, group: Group, seconds: float) -> None:
        """See Dialect.join."""
        body = {
            "master_address": group.address, "master_port": group.port, "rank_offset": group.offsets[url],
            "world_size": group.world, "group_name": group.name, "backend": group.backend,
        }  # fmt: skip
        await http.post(f"{url}/init_weights_update_group", body, seconds=seconds)

    async def receive(self, http: Http, url: str, group: Group, entries: Sequence[Entry], seconds: float) -> None:
        """See Dialect.receive."""
        body = {
            "names": [e.name for e in entries], "dtypes": [e.dtype for e in entries],
            "shapes": [list(e.shape) for e in entries], "group_name": group.name,
            "load_format": "flattened_bucket", "flush_cache": False,
        }  # fmt: skip
        await http.post(f"{url}/update_weights_from_distributed", body, seconds=seconds)

    async def leave(self, http: Http, url: str, group: Group, seconds: float) -> None:
        """See Dialect.leave."""
        await http.post(f"{url}/destroy_weights_update_group", {"group_name": group.name}, seconds=seconds)

    async def load_adapter(
        self, http: Http, url: str, name: str, directory: Path, old: str | None, seconds: float
    ) -> None:
        """See Dialect.load_adapter. A name cannot be loaded twice, so every version has its own."""
        if old is not None:
            await http.post(f"{url}/unload_lora_adapter", {"lora_name": old}, seconds=seconds)
        await http.post(f"{url}/load_lora_adapter", {"lora_name": name, "lora_path": str(directory)}, seconds=seconds)

    async def checksums(self, http: Http, url: str, seconds: float) -> dict[str, str] | None:
        """See Dialect.checksums. Known where one worker holds whole tensors."""
        answer = await http.post(f"{url}/weights_checker", {"action": "checksum"}, seconds=seconds)
        ranks = answer.get("ranks") or []
        return dict(ranks[0]["checksums"]) if len(ranks) == 1 else None

    def hexdigest(self, digest: Any) -> str:
        """See Dialect.hexdigest. SGLang's checker gives the first 8 bytes, on CPU."""
        return digest.hexdigest()[:16]

    async def release_memory(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.release_memory."""
        await http.post(f"{url}/release_memory_occupation", {"tags": ["kv_cache", "weights"]}, seconds=seconds)

    async def take_memory(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.take_memory."""
        await http.post(f"{url}/resume_memory_occupation", {"tags": ["weights", "kv_cache"]}, seconds=seconds)


def _parse(raw: Any) -> Answer:
    try:
        meta = raw["meta_info"]
        tokens = tuple(int(t) for t in raw["output_ids"])
        pairs = meta["output_token_logprobs"]
        logprobs = np.array([np.nan if p[0] is None else p[0] for p in pairs], dtype=np.float32)
        named = tuple(int(p[1]) for p in pairs)
        reason = meta["finish_reason"]["type"]
        spans = meta.get("weight_versions")
        if spans is None:
            spans = [{"version": meta["weight_version"], "start": 0, "end": len(tokens)}]
        stretches = tuple((str(s["version"]), int(s["end"]) - int(s["start"])) for s in spans)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise GarbageAnswer(
            f"an answer that cannot be read ({type(error).__name__}: {error}): {json.dumps(raw)[:300]}"
        ) from error
    if reason != "abort" and named != tokens:
        raise GarbageAnswer("log-probabilities of other tokens than the answer's")
    return Answer(tokens, logprobs, reason, stretches)
