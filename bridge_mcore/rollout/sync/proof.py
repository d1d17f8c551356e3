"""That a server holds the weights that were sent: what is compared, at a sync and later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bridge_mcore.errors import RunStopped
from bridge_mcore.rollout.remote.dialect import Dialect
from bridge_mcore.rollout.remote.http import Http

#: Largest mean |log-probability| difference of the probe, by dtype: what kernels and rounding make.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
#: The probe: two prompts of so many tokens.
_PROMPTS, _PROBE_TOKENS = 2, 24


def probe_prompts(vocab_size: int, most: int = _PROBE_TOKENS) -> list[list[int]]:
    """Prompts of at most so many tokens, the same everywhere, by whose log-probabilities weights are known again."""
    size = (_PROMPTS, min(most, _PROBE_TOKENS))
    return np.random.default_rng(20).integers(0, vocab_size, size).tolist()


class WeightsReplaced(RunStopped):
    """A server holds other weights than those that were sent and proven: somebody else has given it some."""


@dataclass(frozen=True)
class Proof:
    """What a server must still say of its weights after a sync.

    Attributes:
        label: of the weights.
        adapter: name of the one that it has.
        digests: of θ as it was sent, by the engine's names; None where checksums do not prove it.
        scores: the trainer's log-probabilities of the probe; None if it was not asked.
    """

    label: str
    adapter: str | None
    digests: dict[str, str] | None
    scores: list[np.ndarray] | None


async def doubt(
    http: Http, dialect: Dialect, url: str, proof: Proof, prompts: Sequence[Sequence[int]], tolerance: float
) -> str:
    """What a server says of its weights that is not so; "" if all is well."""
    label = await dialect.label(http, url, 60.0)
    if label != proof.label:
        return f"{url} holds weights '{label or 'that it started with'}', but '{proof.label}' were sent"
    if proof.digests is not None:
        found = await dialect.checksums(http, url, 600.0)
        if found is not None and (problem := other_digests(url, found, proof.digests)):
            return problem
        if found is not None and proof.adapter is None:
            return ""
    if proof.scores is None:
        return ""
    theirs = await dialect.score(http, url, prompts, proof.adapter, 600.0)
    return compare_scores(url, proof.scores, theirs, tolerance)[1]


def scores_gap(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Mean difference of two answers to the probe."""
    return float(np.mean([np.abs(a - b).mean() for a, b in zip(ours, theirs, strict=True)]))


def compare_scores(
    url: str, mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray], tolerance: float
) -> tuple[float, str]:
    """(mean difference of the probe's log-probabilities, what is wrong or "")."""
    gap = scores_gap(mine, theirs)
    if gap <= tolerance:  # NaN is not
        return gap, ""
    return gap, (
        f"{url} does not hold the weights that were sent: its log-probabilities of a probe differ from the "
        f"trainer's by {gap:.3g} on average, sync.probe_tolerance is {tolerance:g}"
    )


def other_digests(url: str, found: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """Which of a server's parameters have other digests than `expected`, in words; "" if none."""
    found = {name.replace(".base_layer.", "."): digest for name, digest in found.items()}
    bad = sorted(name for name, digest in expected.items() if found.get(name) != digest)
    # Experts are stacked in the engine's own way: the probe speaks for them.
    bad += sorted(name for name in set(found) - set(expected) if ".experts." not in name)
    if "lm_head.weight" in found and "lm_head.weight" not in expected:  # tied, and listed all the same
        bad = [n for n in bad if n != "lm_head.weight"]
        if found["lm_head.weight"] != expected["model.embed_tokens.weight"]:
            bad.append("lm_head.weight")
    return f"{url} holds other weights than were sent: {', '.join(bad[:4])} ({len(bad)} in all)" if bad else ""
