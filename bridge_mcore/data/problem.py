"""The unit of all data: one problem with a verifiable answer, and perhaps an expert's worked solution."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

#: What judges answers where nothing names a reward.
DEFAULT_REWARD = "math"
#: Stands between several right answers of which a response must give one (`golds: any`): no answer holds this sign.
ANY_OF = "␞"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its gold answer and, where there is one, an expert trace.

    Attributes:
        id: 16 hexadecimal digits made from prompt, answer and system message alone (:func:`problem_id`), so that
            records of different runs, machines and files can be joined. Problems that differ only in their trace share
            an id.
        prompt: the question as text, before any template.
        answer: what the verifier compares with; never empty. :data:`ANY_OF` stands between answers any of which is
            right.
        trace: the expert's worked solution as text, without template or end token; None where there is none.
        source: name of the problem set (see :func:`bridge_mcore.data.problems.source_name`).
        reward: which reward judges its answers, as `data.*.reward` spells it.
        finished: False where the trace was cut short (`data prepare`, limit.policy: cut): no end token follows it.
        system: the system message that came with the question; None where there is none.
    """

    id: str
    prompt: str
    answer: str
    trace: str | None
    source: str
    reward: str = DEFAULT_REWARD
    finished: bool = True
    system: str | None = None

    def __str__(self) -> str:
        """How error messages name a problem: id, set, and the first words of its question."""
        words = " ".join(self.prompt.split())
        return f"problem {self.id} of {self.source} ('{words[:60]}{'…' if len(words) > 60 else ''}')"


def answer_line(answer: str) -> str:
    r"""What is put behind a trace without a box, in a line of its own: its gold in the form that rewards read."""
    return f"\nThe answer is \\boxed{{{answer.partition(ANY_OF)[0]}}}."


def problem_id(prompt: str, answer: str, system: str | None = None) -> str:
    """A stable id from the content. Raises UnicodeEncodeError for text that is not valid Unicode."""
    text = f"{prompt}\0{answer}" if system is None else f"{prompt}\0{answer}\0{system}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
