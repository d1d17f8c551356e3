"""One sync: the live weights to every server, and the proof that they arrived."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from megatron.core import parallel_state as mpu
from torch import Tensor

from bridge_mcore.checkpoint import hf
from bridge_mcore.config.engines import Sync
from bridge_mcore.errors import TrainingError
from bridge_mcore.platform.distributed import Layout
from bridge_mcore.rollout.remote.control import Control
from bridge_mcore.rollout.remote.dialect import Dialect
from bridge_mcore.rollout.remote.http import Http, ServerLost, ServerRefused
from bridge_mcore.rollout.sync.buckets import Buckets, Digests
from bridge_mcore.rollout.sync.proof import (
    Proof,
    WeightsReplaced,
    compare_scores,
    doubt,
    other_digests,
    probe_prompts,
)
from bridge_mcore.rollout.sync.source import Source
from bridge_mcore.rollout.sync.transports import Broadcast, Outcome, SharedMemory

_LOAD_SECONDS = 3600.0  # a server that reads a large checkpoint from a slow file system


@dataclass
class Delivered:
    """One sync.

    Attributes:
        lost: servers that were lost on the way, and how.
        bytes: weights sent (once, however many servers took them); 0 if θ had not changed.
        gap: mean |log-probability| difference of the probe between servers and trainer, the worst server's.
    """

    lost: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    bytes: int = 0
    buckets: int = 0
    gap: float = 0.0
    checked: int = 0  # tensors whose checksum was compared
    #: what the proof was: digests of θ as it was sent, and the trainer's log-probabilities of the probe
    digests: dict[str, str] | None = None
    scores: list[np.ndarray] | None = None


class Delivery:
    """Sends the live weights. Collective over the layout; only ranks that own a stage's weights speak to servers."""

    def __init__(
        self,
        http: Http,
        dialect: Dialect,
        control: Control,
        layout: Layout,
        source: Source,
        settings: Sync,
        method: str,
        *,
        ranks: int,
        directory: Path,
        host: str,
        tolerance: float,
        probe: Callable[[Sequence[Sequence[int]]], list[np.ndarray]],
    ) -> None:
        """ranks: tensor-parallel size of a server. host: address of this host that servers reach. tolerance: largest
        mean difference of the probe. probe: the trainer's log-probabilities of prompts' tokens but the first
        (collective)."""
        self.http, self.dialect, self.control, self.layout = http, dialect, control, layout
        self.source, self.settings, self.method, self.ranks = source, settings, method, ranks
        self.directory, self.host, self.tolerance, self.probe = directory, host, tolerance, probe
        self.merged = settings.adapter == "merged" or source.lora is None
        self._prompts = probe_prompts(source.shape.vocab_size)
        #: url -> name of the adapter it has
        self.adapters: dict[str, str] = {}
        #: url -> what θ it holds
        self._held: dict[str, object] = {}
        self._proofs: dict[str, Proof] = {}
        self._groups = 0

    @property
    def _is_sender(self) -> bool:
        """Whether this rank sends its pipeline stage's weights."""
        return self.layout.tensor_rank == 0 and self.layout.data_rank == 0 and self.layout.context_rank == 0

    def forget_weights(self) -> None:
        """The servers' memory of weights was released: θ must be sent whether it has changed or not."""
        self._held.clear()

    def clean(self) -> None:
        """Remove what was written for servers to read. Not collective."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def forget(self, url: str) -> None:
        """A server was started anew: it holds nothing of this run."""
        self.adapters.pop(url, None)
        self._held.pop(url, None)
        self._proofs.pop(url, None)

    def deliver(self, urls: Sequence[str], label: str, slot: str, resume: Callable[[Sequence[str]], None]) -> Delivered:
        """Send the live weights (of `slot`) to `urls` under `label`. Collective.

        resume: lets servers go on that were paused; called with those that have the weights, before the probe, which a
        paused server would not answer. Lost servers are reported. Raises TrainingError if a server refuses the weights
        or holds others afterwards.
        """
        began = time.perf_counter()
        done = Delivered()
        self.source.settle()
        key = (slot, self.source.changes())
        stale = [url for url in urls if self.merged or self._held.get(url) != key]
        if stale:
            for url in stale:
                self._held.pop(url, None)
                self._proofs.pop(url, None)
            if self.method == "disk":
                self._through_disk(stale, label, done)
            else:
                self._through_buckets(stale, label, done)
        alive = [url for url in urls if url not in done.lost]
        name = None
        if not self.merged:
            name = f"w-{label}"
            self._adapter(alive, name, label, done)
        alive = [url for url in alive if url not in done.lost]
        resume(alive)
        self._check_probe(alive, name, done)
        for url in alive:
            if url not in done.lost:
                self._held[url] = key
                before = self._proofs.get(url)  # of θ, if it was not sent now
                digests = done.digests if url in stale or before is None else before.digests
                self._proofs[url] = Proof(label, name, digests, done.scores)
        done.seconds = time.perf_counter() - began
        return done

    # --- the ways ----------------------------------------------------------------------------------------------------

    def _through_disk(self, urls: Sequence[str], label: str, done: Delivered) -> None:
        target = self.directory / "weights"
        digests = self._digests()

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for pairs in self.source.groups(self.merged):
                for name, tensor in pairs:
                    whole = tensor.cpu().contiguous()
                    if digests is not None and self._is_sender:
                        digests.add(name, whole)
                    yield name, whole

        hf.write_hf(target, self.source.directory, tensors(), self.source.dtype)
        done.bytes = sum(f.stat().st_size for f in target.glob("*.safetensors"))

        def load(url: str) -> Coroutine:
            return self.dialect.load_directory(self.http, url, target.absolute(), label, _LOAD_SECONDS)

        self._agree(done, lambda: self._all(urls, load))
        self._check_digests([url for url in urls if url not in done.lost], digests, done)

    def _through_buckets(self, urls: Sequence[str], label: str, done: Delivered) -> None:
        digests = self._digests()
        self._agree(done, lambda: self._all(urls, lambda url: self.dialect.begin(self.http, url, 60.0)))
        # With experts every data-parallel rank owns some; else one replica is enough.
        takes_part = mpu.get_expert_model_parallel_world_size() > 1 or (
            self.layout.data_rank == 0 and self.layout.context_rank == 0
        )
        self._groups += 1
        for stage in range(self.layout.pipeline):
            outcome = Outcome()
            targets = [url for url in urls if url not in done.lost]
            if stage == self.layout.pipeline_rank and takes_part and targets:
                groups = self.source.groups(self.merged)
                if self._is_sender:
                    outcome = self._send(targets, groups, label, digests, done)
                else:
                    for _ in groups:
                        pass
            self._merge(done, outcome)
        targets = [url for url in urls if url not in done.lost]
        self._agree(done, lambda: self._all(targets, lambda url: self.dialect.end(self.http, url, label, 600.0)))
        totals = self.control.gather((done.bytes, done.buckets))
        done.bytes, done.buckets = sum(b for b, _ in totals), sum(c for _, c in totals)
        self._check_digests([url for url in targets if url not in done.lost], digests, done)

    def _send(
        self,
        urls: Sequence[str],
        groups: Iterator[list[tuple[str, Tensor]]],
        label: str,
        digests: Digests | None,
        done: Delivered,
    ) -> Outcome:
        transport: SharedMemory | Broadcast
        if self.method == "tensor":
            transport = SharedMemory(self.http, self.dialect, urls, self.ranks, self.source.device)
        else:
            # A name of its own: after a failure the servers may still hold the last one.
            name = f"{label}-{self.layout.pipeline_rank}-{self._groups}"
            transport = Broadcast(self.http, self.dialect, urls, self.ranks, self.source.device, name, self.host)
        alignment = self.dialect.alignment
        budget = min(int(self.settings.bucket_mib * 2**20), self.source.size(alignment))
        buckets = Buckets(budget, transport.make, transport.send, digests, alignment)
        try:
            buckets.fill(groups)
        finally:
            transport.close()
        done.bytes, done.buckets = buckets.bytes, buckets.count
        return transport.outcome

    def _adapter(self, urls: Sequence[str], name: str, label: str, done: Delivered) -> None:
        target = self.directory / name
        self.source.write_adapter(target)
        self.control.barrier()

        async def load(url: str) -> None:
            await self.dialect.load_adapter(
                self.http, url, name, target.absolute(), self.adapters.get(url), _LOAD_SECONDS
            )
            await self.dialect.set_label(self.http, url, label, 60.0)
            await self.dialect.flush(self.http, url, 60.0)

        self._agree(done, lambda: self._all(urls, load))
        # vLLM may read the present one again; older ones are done with.
        for old in {n for u in urls if (n := self.adapters.get(u)) is not None}:
            self.source.remove(self.directory / old)
        for url in urls:
            if url not in done.lost:
                self.adapters[url] = name

    # --- asking servers, agreeing among ranks ------------------------------------------------------------------------

    def _all(self, urls: Sequence[str], ask: Callable[[str], Coroutine]) -> Outcome:
        """Ask all servers at once."""
        outcome = Outcome()
        answers = {url: self.http.start(ask(url)) for url in urls}
        for url, answer in answers.items():
            try:
                answer.result(timeout=_LOAD_SECONDS)
            except Exception as error:  # sorted out by all ranks together
                outcome.note(url, error)
        return outcome

    def _agree(self, done: Delivered, ask: Callable[[], Outcome]) -> None:
        """Rank 0 asks; all ranks learn what came of it."""
        self._merge(done, ask() if self.control.is_main else Outcome())

    def _merge(self, done: Delivered, outcome: Outcome) -> None:
        for part in self.control.gather(outcome):
            done.lost.update(part.lost)
            outcome.refused.update(part.refused)
        if outcome.refused:
            url, why = next(iter(outcome.refused.items()))
            raise TrainingError(f"{url} did not take the weights (sync.method = {self.method}): {why}")

    # --- proof -------------------------------------------------------------------------------------------------------

    def _digests(self) -> Digests | None:
        """Checksums can be compared where one worker holds whole tensors that arrive as they are sent."""
        if self.source.device.type != "cpu" or self.ranks > 1:
            if self.settings.check == "checksum":
                raise TrainingError("sync.check = checksum needs CPU servers of servers.tensor = 1; use probe, or auto")
            return None
        return None if self.settings.check == "probe" else Digests(self.dialect.hexdigest, self.dialect.positive_zeros)

    def _check_digests(self, urls: Sequence[str], digests: Digests | None, done: Delivered) -> None:
        if digests is None:
            return
        expected = {name: d for part in self.control.gather(digests.hex()) for name, d in part.items()}
        done.digests = expected
        outcome, wrong = Outcome(), ""
        if self.control.is_main:
            answers = {url: self.http.start(self.dialect.checksums(self.http, url, 600.0)) for url in urls}
            for url, answer in answers.items():
                try:
                    found = answer.result()
                except (ServerLost, ServerRefused) as error:
                    outcome.note(url, error)
                    continue
                if found is None:
                    continue
                done.checked = len(expected)
                wrong = wrong or other_digests(url, found, expected)
        self._merge(done, outcome)
        wrong = next((text for text in self.control.gather(wrong) if text), "")
        if wrong:
            raise TrainingError(wrong)

    def _check_probe(self, urls: Sequence[str], adapter: str | None, done: Delivered) -> None:
        if self.settings.check == "checksum" and self.merged:
            return  # an adapter has no checksum
        outcome, worst, wrong = Outcome(), 0.0, ""
        answers = {}
        if self.control.is_main:  # they work on it while the trainer does
            answers = {
                url: self.http.start(self.dialect.score(self.http, url, self._prompts, adapter, 600.0)) for url in urls
            }
        done.scores = mine = self.probe(self._prompts)
        if self.control.is_main:
            for url, answer in answers.items():
                try:
                    gap, problem = compare_scores(url, mine, answer.result(), self.tolerance)
                except (ServerLost, ServerRefused, ValueError, TypeError) as error:
                    outcome.note(url, error)
                    continue
                worst, wrong = max(worst, gap), wrong or problem
        self._merge(done, outcome)
        done.gap, wrong = self.control.gather((worst, wrong))[0]
        if wrong:
            raise TrainingError(wrong)

    # --- later -------------------------------------------------------------------------------------------------------

    def confirm(self, urls: Sequence[str]) -> None:
        """Ask servers whether they still hold what was sent and proven, before what they have sampled is used.

        They say their label, and the checksums where those prove the sync, else the probe's log-probabilities, which
        are compared with the trainer's of the sync. A server that is lost meanwhile is left to the next sync.
        Collective. Raises WeightsReplaced, on all ranks.
        """
        wrong = ""
        if self.control.is_main:
            answers = [
                self.http.start(doubt(self.http, self.dialect, url, proof, self._prompts, self.tolerance))
                for url in urls
                if (proof := self._proofs.get(url)) is not None
            ]
            for answer in answers:
                try:
                    wrong = wrong or answer.result()
                except ServerLost:
                    continue
                except (ServerRefused, ValueError, TypeError) as error:
                    wrong = wrong or f"a server does not say which weights it holds: {error}"
        wrong = self.control.gather(wrong)[0]
        if wrong:
            raise WeightsReplaced(
                f"{wrong}\nThey were replaced after the sync, so nothing that this step has sampled is used: find out "
                "who else reaches the server and has its key"
            )
