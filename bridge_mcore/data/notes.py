"""What was done to a source's texts on their way to tokens: counted where it happens, said in one place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from bridge_mcore.config.json_file import one_line


class Notes(Counter[str]):
    """Counts by key, and of each key the first case: what `data.json` keeps and :func:`lines` says."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        super().__init__(counts or {})
        self.first: dict[str, str] = {}

    def add(self, key: str, case: str = "", count: int = 1) -> None:
        """Count something, and remember the first case of it."""
        self[key] += count
        self.first.setdefault(key, case)

    def include(self, other: Notes) -> None:
        """Add the counts of others, whose cases come later."""
        self.update(other)
        self.first = {**other.first, **self.first}


#: What is said of rows, of prompts and of traces; {n} of {all}. In the order in which it is said.
_ROWS = {
    "unpinned": "dataset_revision is not set: what was read is the newest commit of the hub's set",
    "skipped": "{n} unusable rows were left out (bad_rows: skip)",
    "repeated": "{n} rows repeat a problem, which is asked once",
    "again": "{n} of {all} rows are in an earlier source of the same list too, and are trained on twice",
    "system_dropped": "{n} system messages were left out (system_messages: drop)",
    "several_traces": "{n} of {all} rows list several traces, and each of them was tried",
    "listed_golds": "{n} of {all} rows have a list of right answers, and a response must give all of them (golds: all)",
    "any_listed_golds": "{n} of {all} rows have a list of right answers, and any one of them is right (golds: any)",
    "answer_of_trace": "{n} of {all} rows have an empty answer, and take the last box of their trace for it",
    "two_golds": "{n} of {all} rows ask what another row asks, with another right answer",
}
_TRACE_ROWS = {
    "unpinned": "dataset_revision is not set: what was read is the newest commit of the hub's set",
    "boxed": "{n} of {traces} traces got a box with their row's answer at the end, for the reward reads boxes "
    "(format: fields leaves traces as they are)",
    "further_traces": "{n} of {traces} rows have several traces, of which the first is learned",
    "contradicting_traces": "{n} of {traces} traces end in another answer than their row's",
    "unboxed": "{n} of {traces} traces hold no \\boxed{}, which is all that their reward reads",
}
_PROMPTS = {
    "system_kept": "{n} of {all} prompts have a system message of their own row",
    "control_prompts": "{n} of {all} prompts spell control tokens, {prompt_marks} in all, which are read as text",
    "asked_twice": "{n} of {all} questions ask for a \\boxed{} themselves, and the template asks again "
    "(data.instruction: null turns that off)",
    "unknown_prompts": "{n} of {all} prompts hold {unknown_prompt_tokens} tokens that the tokenizer does not know",
    "lost_prompts": "{n} of {all} prompts hold characters that the tokenizer drops",
    "thought_opened": "{n} of {all} prompts open a thought, which the answer goes on with",
    "dated_prompts": "{n} of {all} prompts may hold the day's date, which the chat template puts there: a resume on "
    "another day has other prompts",
    "dropped": "{n} of {all} are over the limit and were dropped",
}
_TRACES = {
    "without_trace": "{n} rows have no trace, and SFT does not learn from them",
    "ended_traces": "{n} of {all} traces spell an end token at their end, which was cut: the template's own follows",
    "control_traces": "{n} of {all} traces spell control tokens, {trace_marks} in all, which are read as text",
    "opened_twice": "{n} of {all} traces open a thought that the prompt has opened; their own opening was cut",
    "never_opened": "{n} of {all} traces close a thought that neither they nor their prompts open "
    "(data prepare: thinking: open)",
    "never_closed": "{n} of {all} traces never close the thought that was opened",
    "opened_again": "{n} of {all} traces open a thought after the one that the prompt has opened and closed",
    "repeats_prompt": "{n} of {all} traces begin with their own question",
    "unknown_traces": "{n} of {all} traces hold {unknown_trace_tokens} tokens that the tokenizer does not know",
    "lost_traces": "{n} of {all} traces hold characters that the tokenizer drops",
    "cut": "{n} of {all} traces were cut at the limit",
}


#: Counts that texts tell beside their own.
_COUNTED = ("prompt_marks", "trace_marks", "unknown_prompt_tokens", "unknown_trace_tokens")
#: What leads over to the case that is named, where it is not a first one.
_CASE = {"unpinned": ""}
#: Nothing to look into: no case of them is named.
_PLAIN = (
    "system_dropped",
    "listed_golds",
    "any_listed_golds",
    "boxed",
    "further_traces",
    "several_traces",
    "system_kept",
    "thought_opened",
    "dated_prompts",
)


def lines(name: str, rows: Notes, encoded: Mapping[str, Notes], learned: bool = False) -> Iterator[str]:
    """What was done to a source, a line each, nothing where nothing was.

    Args:
        name: what the lines call it, such as data.rl.
        rows: of reading it.
        encoded: of making tokens of it: of its "prompts", and of its "traces" (each with its prompt).
        learned: its traces are learned from, also where their tokens are counted elsewhere.
    """
    facts = {"all": rows["rows"], "traces": rows["with_trace"]}
    yield from _lines(name, rows, {**_ROWS, **(_TRACE_ROWS if learned or "traces" in encoded else {})}, facts)
    said: set[str] = set()
    for what, notes in encoded.items():
        facts["all"] = notes["kept"] + notes["cut"] + notes["dropped"]
        texts = {**_PROMPTS, **_TRACES} if what == "traces" else _PROMPTS
        made = list(_lines(name, notes, texts, facts))
        yield from (line for line in made if line not in said)  # the same prompts, alone and before their traces
        said.update(made)


def _lines(name: str, notes: Notes, texts: dict[str, str], facts: dict[str, int]) -> Iterator[str]:
    for key, text in texts.items():
        if notes[key]:
            first = "" if key in _PLAIN else one_line(notes.first.get(key, ""), 200)
            for word, value in {"n": notes[key], **{word: notes[word] for word in _COUNTED}, **facts}.items():
                text = text.replace(f"{{{word}}}", str(value))
            yield f"· {name}: {text}" + (f"{_CASE.get(key, '; the first')}: {first}" if first else "")
