"""Ratios, compared as what they are proportions of, and times of day, which look like them."""

from __future__ import annotations

import re

from bridge_mcore.rewards.structure import Answer, flat
from bridge_mcore.rewards.values import Decision, Values, measure_value

_TIME = re.compile(
    r"(?P<hours>\d{1,2}):(?P<minutes>[0-5]\d)(?::(?P<seconds>[0-5]\d))?"
    r"(?: ?(?P<half>[ap])\.? ?m\.?| ?(?:o'?clock|hours?|hrs?|h|min(?:ute)?s?))?",
    re.IGNORECASE | re.ASCII,
)
_HOUR = re.compile(r"(?P<hours>\d{1,2})(?: ?(?P<half>[ap])\.? ?m\.?| ?o'?clock)", re.IGNORECASE | re.ASCII)


def read_time(text: str) -> Answer | None:
    """``3:30``, ``11:40 a.m.``, ``12:00:05``: two digits behind a colon, below 60. Its items are hours, minutes and
    seconds, its label says "a" or "p"."""
    if ":" not in text or (found := _TIME.fullmatch(flat(text))) is None:
        return None
    parts = (found["hours"], found["minutes"], found["seconds"] or "0")
    items = tuple(Answer("value", str(int(part))) for part in parts)
    return Answer("time", text, items, label=(found["half"] or "").lower())


class Ratios(Values):
    """The rules for what has a colon."""

    def _ratios(self, gold: Answer, answer: Answer) -> Decision:
        if gold.kind == answer.kind:
            one, other = ([item.text for item in ratio.items] for ratio in (gold, answer))
            return self._proportional(one, other)
        ratio, value = (gold, answer) if gold.kind == "ratio" else (answer, gold)
        if len(ratio.items) != 2 or value.kind != "value":
            return self._no("a ratio is asked for, or given where none is")
        fraction = f"\\frac{{{ratio.items[0].text}}}{{{ratio.items[1].text}}}"
        return self._values(*((fraction, value.text) if ratio is gold else (value.text, fraction)))

    def _proportional(self, one: list[str], other: list[str]) -> Decision:
        """The two are multiples of each other, and neither is nothing but zeros.

        With a term that is zero in neither, crosswise products decide; without one, they would be 0 = 0.
        """
        if len(one) != len(other):
            return self._no("a ratio of another number of terms")
        unknown = False
        for a, b in zip(one, other, strict=True):
            zeros = self._zero(a), self._zero(b)
            if True in zeros and zeros[0] != zeros[1]:
                return self._no("a term is zero on one side alone")
            if zeros == (False, False):
                return self._all(self._values(f"({x})({b})", f"({y})({a})") for x, y in zip(one, other, strict=True))
            unknown |= None in zeros
        return None if unknown else self._no("a ratio of zeros alone says nothing")

    def _zero(self, text: str) -> Decision:
        return self._formulas_equal("0", measure_value(text))

    def _times(self, gold: Answer, answer: Answer) -> Decision:
        """The same numerals; a ratio of small numbers that happens to look like a time stays one."""
        if gold.kind == answer.kind:
            one, other = _clock(gold), _clock(answer)
            if gold.label and answer.label:
                return _of_day(gold) == _of_day(answer) or self._no("another time")
            if one == other or _of_day(gold) == _of_day(answer):
                return True
            return self._no("another time")
        if gold.kind == "ratio" and not answer.label:
            return self._ratios(gold, as_ratio(answer))
        return self._hour(*((gold, answer) if gold.kind == "time" else (answer, gold)))

    def _hour(self, time: Answer, other: Answer) -> Decision:
        found = _HOUR.fullmatch(flat(other.text))
        if found:
            spelled = read_time(f"{found['hours']}:00 {found['half'] or ''}{'m' if found['half'] else ''}".strip())
            return self._times(time, spelled) if spelled else self._no("a time is asked for")
        return self._no("a time of day, which is no ratio")


def as_ratio(time: Answer) -> Answer:
    """A time of day as the ratio that it may be."""
    return Answer("ratio", time.text, tuple(Answer("value", part) for part in time.text.split(":")))


def _clock(time: Answer) -> tuple[int, int, int]:
    hours, minutes, seconds = (int(item.text) for item in time.items)
    return hours, minutes, seconds


def _of_day(time: Answer) -> tuple[int, int, int]:
    """The same from 0 to 24 hours: 12 p.m. is noon, 12 a.m. midnight."""
    hours, minutes, seconds = _clock(time)
    if time.label and hours == 12:
        hours = 0
    return hours + (12 if time.label == "p" and hours < 12 else 0), minutes, seconds
