"""vLLM's HTTP interface (0.32.0), and our worker extension inside it, which takes the weights.

vLLM's own reload is not used: it accepts incomplete checkpoints, and on CPU leaves a tied output layer as it was.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
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
from bridge_mcore.rollout.remote.http import Http, ServerLost, ServerRefused
from bridge_mcore.rollout.sampling import request_seed
from bridge_mcore.rollout.sync.shared import buffer_path, file_buffer, ipc_arguments

_MODEL = "policy"  # what the server calls its model
_PREFIX = "generate-tokens-"  # what it puts before a request's id
_LOOK_S = 5.0  # between looks whether the engine core lives, while it is waited for
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: Holds the worker extension and nothing else: it goes on the server's PYTHONPATH.
_PLUGIN = Path(__file__).with_name("vllm_plugin")


class VLLM:
    """See `Dialect`."""

    name = "vllm"
    reserve = 0
    sees_all_devices = False
    alignment = 16
    positive_zeros = True

    def command(self, options: LaunchOptions) -> tuple[list[str], dict[str, str]]:
        """See Dialect.command."""
        o = options
        # Raw log-probabilities are at temperature 1; processed ones at the request's, renormalised over the sampled
        # set (there is none then: config.engine_checks).
        mode = "raw_logprobs" if o.temperature == 1 else "processed_logprobs"
        command = [
            *entry_command(o.python, "vllm.entrypoints.openai.api_server"), "--model", str(o.model), "--host", o.host,
            "--port", str(o.port), "--dtype", o.dtype, "--tensor-parallel-size", str(o.tensor),
            "--max-model-len", str(o.context), "--max-num-seqs", str(o.in_flight), "--served-model-name", _MODEL,
            "--seed", str(o.seed % 2**31), "--generation-config", "vllm", "--logprobs-mode", mode,
            "--enable-scale-out", "--worker-extension-cls", "bridge_vllm_worker.BridgeWorkerExtension",
        ]  # fmt: skip
        environment = {
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1",
            "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(_PLUGIN),
        } | local_environment(o.host)  # fmt: skip
        if o.memory_fraction is not None and o.device != "cpu":
            command += ["--gpu-memory-utilization", str(o.memory_fraction)]
        if o.lora_rank:
            rank = next((r for r in _LORA_RANKS if r >= o.lora_rank), o.lora_rank)
            command += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "2"]
            environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if o.colocated:
            command += ["--enable-sleep-mode"]
        if o.device == "cpu":
            # A seed per request and chunked prefill do not go together on CPU; without chunks a prompt is one batch.
            command += [
                "--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(o.context, 2048)),
            ]  # fmt: skip
            environment |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
            if o.tensor > 1:
                environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(i) for i in range(o.tensor))
        return command + list(o.arguments), environment

    async def healthy(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.healthy. Dead, if vLLM says that its engine core is: the HTTP side may live on."""
        try:
            await http.get(f"{url}/health", seconds=seconds)
        except ServerRefused as error:
            if error.status == 503:
                raise ServerLost(f"{url}: vLLM's engine core has died", "dead") from error
            raise

    async def ready(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.ready."""
        await self.healthy(http, url, seconds)

    async def _post(self, http: Http, url: str, path: str, body: Any = None, *, seconds: float) -> Any:
        """POST what the engine core has to do; see `Http.ask`. The HTTP side outlives a core that was killed: it
        answers with an error then, or not at all. ServerLost as soon as that is known."""
        asked = asyncio.ensure_future(http.post(f"{url}{path}", body, seconds=seconds))
        try:
            while not (await asyncio.wait({asked}, timeout=_LOOK_S))[0]:
                await self._check_core(http, url)
            return asked.result()
        except ServerRefused as error:
            if error.status >= 500:
                await self._check_core(http, url)
            raise
        finally:
            asked.cancel()

    async def _check_core(self, http: Http, url: str) -> None:
        """Raises ServerLost if the server has died; one that is silent is left to the time limits."""
        try:
            await self.healthy(http, url, 10.0)
        except ServerLost as error:
            if error.how == "dead":
                raise
        except ServerRefused:
            pass

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
        body = {
            "request_id": rid,
            "model": adapter or _MODEL,
            "token_ids": list(request.prompt),
            "sampling_params": {
                "max_tokens": params.max_new_tokens, "temperature": params.temperature, "top_p": params.top_p,
                "top_k": params.top_k, "seed": request_seed(params.seed, request.key), "n": 1, "logprobs": 0,
                "stop_token_ids": list(params.stop_token_ids), "ignore_eos": True,
                "stop": list(params.stop_texts), "detokenize": bool(params.stop_texts),
            },
        }  # fmt: skip
        raw = await http.post(f"{url}/inference/v1/generate", body, seconds=seconds)
        return raw, _parse(raw)

    async def reads_text(self, http: Http, url: str, seconds: float) -> bool:
        """See Dialect.reads_text. Not asked: a server that was started without a tokenizer refuses stop texts."""
        return True

    async def abort(self, http: Http, url: str, rid: str) -> None:
        """See Dialect.abort."""
        await http.post(f"{url}/abort_requests", {"request_ids": [_PREFIX + rid]}, seconds=10)

    async def score(
        self, http: Http, url: str, prompts: Sequence[Sequence[int]], adapter: str | None, seconds: float
    ) -> list[np.ndarray]:
        """See Dialect.score."""
        body = {
            "model": adapter or _MODEL, "prompt": [list(p) for p in prompts], "max_tokens": 1, "temperature": 1.0,
            "prompt_logprobs": 0, "logprobs": 0, "return_token_ids": True, "ignore_eos": True,
        }  # fmt: skip
        raw = await self._post(http, url, "/v1/completions", body, seconds=seconds)
        try:
            scored = []
            for prompt, choice in zip(prompts, sorted(raw["choices"], key=lambda c: c["index"]), strict=True):
                pairs = zip(prompt[1:], choice["prompt_logprobs"][1:], strict=True)
                scored.append(np.array([entry[str(token)]["logprob"] for token, entry in pairs]))
            return scored
        except (KeyError, TypeError, ValueError) as error:
            raise ServerRefused(200, f"{url} gave no log-probabilities of the prompt: {str(raw)[:300]}") from error

    async def _workers(self, http: Http, url: str, method: str, seconds: float, **kwargs: Any) -> list[dict[str, Any]]:
        """Call a method of the worker extension; ServerRefused if a worker answers with an error."""
        body = {"method": method, "kwargs": kwargs, "timeout": seconds}
        raw = await self._post(http, url, "/collective_rpc", body, seconds=seconds + 10)
        results = raw.get("results") if isinstance(raw, dict) else None
        if not isinstance(results, list):
            raise ServerRefused(200, f"{url}/collective_rpc {method}: {str(raw)[:300]}")
        for answer in results:
            if not isinstance(answer, dict) or "error" in answer:
                raise ServerRefused(200, f"{url}, worker's {method}: {answer}")
        return results

    async def label(self, http: Http, url: str, seconds: float) -> str | None:
        """See Dialect.label."""
        workers = await self._workers(http, url, "bridge_version", seconds)
        labels = {answer["version"] for answer in workers}
        return labels.pop() if len(labels) == 1 else None

    async def set_label(self, http: Http, url: str, label: str, seconds: float) -> None:
        """See Dialect.set_label."""
        await self._workers(http, url, "bridge_set_version", seconds, version=label)
        await self._post(http, url, "/update_weight_version", {"new_version": label}, seconds=seconds)

    async def pause(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.pause."""
        await self._post(http, url, "/pause?mode=keep", seconds=seconds)

    async def resume(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.resume."""
        await self._post(http, url, "/resume", seconds=seconds)

    async def flush(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.flush."""
        answer = await self._post(http, url, "/reset_prefix_cache?reset_running_requests=true", seconds=seconds)
        if isinstance(answer, dict) and answer.get("success") is False:
            raise ServerRefused(200, f"{url} did not forget what older weights have cached: {answer}")

    async def begin(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.begin."""
        await self._workers(http, url, "bridge_begin", seconds)

    async def end(self, http: Http, url: str, label: str, seconds: float) -> None:
        """See Dialect.end."""
        await self._workers(http, url, "bridge_finish", seconds, version=label, complete=True)
        await self.flush(http, url, seconds)
        await self.set_label(http, url, label, seconds)

    async def load_directory(self, http: Http, url: str, directory: Path, label: str, seconds: float) -> None:
        """See Dialect.load_directory."""
        await self.begin(http, url, seconds)
        await self._workers(http, url, "bridge_load_disk", seconds, path=str(directory))
        await self.end(http, url, label, seconds)

    def shared_buffer(self, size: int, device: torch.device) -> Tensor:
        """See Dialect.shared_buffer."""
        return file_buffer(size, device)

    def shared_payload(self, bucket: Tensor, entries: Sequence[Entry], ranks: int) -> Any:
        """See Dialect.shared_payload."""
        listed = _listed(entries)
        if bucket.device.type == "cpu":
            return {"method": "bridge_load_shared", "path": buffer_path(bucket), "entries": listed}
        return {"method": "bridge_load_ipc", "handle": [ipc_arguments(bucket) for _ in range(ranks)], "entries": listed}

    async def load_shared(self, http: Http, url: str, payload: Any, seconds: float) -> None:
        """See Dialect.load_shared."""
        arguments = dict(payload)
        await self._workers(http, url, arguments.pop("method"), seconds, **arguments)

    async def join(self, http: Http, url: str, group: Group, seconds: float) -> None:
        """See Dialect.join."""
        await self._workers(
            http, url, "bridge_join", seconds, address=group.address, port=group.port,
            rank_offset=group.offsets[url], world_size=group.world, name=group.name, backend=group.backend,
        )  # fmt: skip

    async def receive(self, http: Http, url: str, group: Group, entries: Sequence[Entry], seconds: float) -> None:
        """See Dialect.receive."""
        total = max(e.end for e in entries)
        await self._workers(
            http, url, "bridge_receive", seconds, name=group.name, entries=_listed(entries), total_bytes=total
        )

    async def leave(self, http: Http, url: str, group: Group, seconds: float) -> None:
        """See Dialect.leave."""
        await self._workers(http, url, "bridge_leave", seconds, name=group.name)

    async def load_adapter(
        self, http: Http, url: str, name: str, directory: Path, old: str | None, seconds: float
    ) -> None:
        """See Dialect.load_adapter."""
        body = {"lora_name": name, "lora_path": str(directory), "load_inplace": True}
        await self._post(http, url, "/v1/load_lora_adapter", body, seconds=seconds)
        if old is not None:
            await self._post(http, url, "/v1/unload_lora_adapter", {"lora_name": old}, seconds=seconds)

    async def checksums(self, http: Http, url: str, seconds: float) -> dict[str, str] | None:
        """See Dialect.checksums. Known where one worker holds whole tensors."""
        workers = await self._workers(http, url, "bridge_checksums", seconds)
        return workers[0] if len(workers) == 1 else None

    def hexdigest(self, digest: Any) -> str:
        """See Dialect.hexdigest."""
        return digest.hexdigest()

    async def release_memory(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.release_memory. Weights are sent anew afterwards, so they are dropped too (level 2)."""
        await self._post(http, url, "/sleep?level=2", seconds=seconds)

    async def take_memory(self, http: Http, url: str, seconds: float) -> None:
        """See Dialect.take_memory."""
        await self._post(http, url, "/wake_up", seconds=seconds)


def _listed(entries: Sequence[Entry]) -> list[list[Any]]:
    return [[e.name, e.dtype, list(e.shape), e.start] for e in entries]


def _parse(raw: Any) -> Answer:
    try:
        choice = raw["choices"][0]
        tokens = tuple(int(t) for t in choice["token_ids"])
        reason = choice["finish_reason"]
        content = choice["logprobs"]["content"] if tokens else []
        logprobs = np.array([np.nan if c["logprob"] is None else c["logprob"] for c in content], dtype=np.float32)
        named = tuple(int(c["token_id"]) for c in content)
        spans = tuple((str(s["version"]), int(s["end"]) - int(s["start"])) for s in choice["weight_versions"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise GarbageAnswer(
            f"an answer that cannot be read ({type(error).__name__}: {error}): {json.dumps(raw)[:300]}"
        ) from error
    if reason != "abort" and named != tokens:
        raise GarbageAnswer("log-probabilities of other tokens than the answer's")
    return Answer(tokens, logprobs, reason, spans)
