"""Texts of data as tokens: what they say is text, whatever it spells; a control token comes from a template alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from bridge_mcore.data.texts import token_ids
from bridge_mcore.data.thoughts import THOUGHTS
from bridge_mcore.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: How control tokens look that a tokenizer's files do not call special: `<|fim_prefix|>`, DeepSeek's `<｜User｜>`.
_LOOKS_LIKE_CONTROL = re.compile(r"<\|[^<>|]*\|>|<｜[^<>｜]*｜>|</?(?:tool|function)[\w-]*>|\[/?[A-Z_]{3,}\]")
#: Marks that belong to an answer: a trace that thinks must spell them as the policy does.
_OF_AN_ANSWER = re.compile(r"think|thought|reason|solution|answer", re.IGNORECASE)
#: A character that few tokenizers know, and no normaliser takes away.
#: Marks that a template may open or close an answer with, and that the answer itself spells all the same.
_TAG = re.compile(r"</?\w+>")
_RARE = "\U00013000"
_LETTER = "a"
_PRIVATE = range(0xE000, 0xF8FF)


def begins_answer(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether a token is called after thoughts or answers."""
    return _OF_AN_ANSWER.search(str(tokenizer.convert_ids_to_tokens(token))) is not None


def _is_answers(mark: str) -> bool:
    """Whether a mark is the answer's to spell though a template writes it."""
    return mark in THOUGHTS or mark in THOUGHTS.values() or bool(_TAG.fullmatch(mark) and _OF_AN_ANSWER.search(mark))


class TextCodec:
    """A tokenizer's reading of texts in which nothing becomes a control token.

    Attributes:
        marks: control tokens by how they are spelt: the special ones and those that look like it, without `<unk>` and
            the marks of thoughts and answers.
        unknown: id of what the tokenizer does not know, or None.
        shared: that id is also the one of padding, or of a beginning or an end.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int] = (), written: Sequence[int] = ()
    ) -> None:
        """
        Args:
            ends: tokens that end an answer: marks, whatever they are called.
            written: tokens that a template writes by itself: marks, where they are added ones.
        """
        self.tokenizer = tokenizer
        roles = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
        unknown = tokenizer.unk_token_id
        self.unknown: int | None = unknown
        self.shared = unknown is not None and unknown in roles
        added = tokenizer.added_tokens_decoder
        named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False))
        named |= {t.content: i for i, t in added.items() if t.special or _LOOKS_LIKE_CONTROL.fullmatch(t.content)}
        self.marks: dict[str, int] = {
            text: token
            for text, token in named.items()
            if text and (token != unknown or self.shared) and not _OF_AN_ANSWER.search(text)
        }
        always = {i: t.content for i, t in added.items() if i in ends or (i in written and not _is_answers(t.content))}
        self.marks |= {text: token for token, text in always.items() if text and (token != unknown or self.shared)}
        self._ids = frozenset(self.marks.values())
        longest_first = sorted(self.marks, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        # Where a normaliser comes before a control token is looked for, other spellings make it too.
        normaliser = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        self._loose = normaliser is not None and any(t.normalized for i, t in added.items() if i in self._ids)

    def unknown_in(self, texts: Sequence[str], ids: Sequence[int]) -> int:
        """How many tokens of texts are unknown; `ids` are all of theirs, with those of a template around them."""
        if self.unknown is None:
            return 0
        if self.shared and any(token == self.unknown for token in ids):  # a template may have written it
            return sum(self.literal(text).count(self.unknown) for text in texts)
        return ids.count(self.unknown)

    def encode(self, text: str) -> list[int]:
        """Ids of a text whose control tokens are meant."""
        return token_ids(self.tokenizer, text)

    def spelt(self, text: str) -> list[str]:
        """The control tokens that a text spells."""
        return self._pattern.findall(text) if self._pattern is not None else []

    def literal(self, text: str) -> list[int]:
        """Ids of a text, none of them a control token. Raises DataError where the tokenizer knows no other way."""
        return self.rendered(lambda texts: texts[0], [text])

    def rendered(
        self, render: Callable[[list[str]], str], texts: Sequence[str], shorten: Callable[[str], str] = str
    ) -> list[int]:
        """Ids of what a template makes of texts: its own control tokens are meant, those that the texts spell are not.

        Where texts spell one, the template is given a sign in its place, so that the two can be told apart.
        shorten: what of the template's text is taken. Raises as `literal`.
        """
        found = [mark for text in texts for mark in self.spelt(text)]
        if self._loose:
            for text in texts:
                if self._ids.intersection(self.encode(self._pattern.sub(" ", text) if self._pattern else text)):
                    raise DataError(
                        f"a text makes a control token of the tokenizer, in another spelling: {text[:60]!r}"
                    )
        if not found or self._pattern is None:
            return self.encode(shorten(render(list(texts))))
        everything = "".join(texts)
        sign = next(chr(code) for code in _PRIVATE if chr(code) not in everything)
        numbers = {mark: number for number, mark in enumerate(dict.fromkeys(found))}
        signed = [self._pattern.sub(lambda match: f"{sign}{numbers[match[0]]}{sign}", text) for text in texts]
        text = re.sub(rf"{sign}\d*\Z", "", cut) if (cut := shorten(whole := render(signed))) != whole else whole
        marks, ids = list(numbers), []
        for position, piece in enumerate(re.split(rf"{sign}(\d+){sign}", text)):
            if position % 2:
                ids += self._as_text(marks[int(piece)])
            elif piece:
                ids += self._going_on(self.encode, piece) if position else self.encode(piece)
        return ids

    def _going_on(self, read: Callable[[str], list[int]], text: str) -> list[int]:
        """Ids of a text that goes on from another one: without the space that some tokenizers put before every text."""
        if self._spaced:
            before, both = read(_LETTER), read(_LETTER + text)
            if len(both) > len(before) and both[: len(before)] == before:
                return both[len(before) :]
        return read(text)

    @cached_property
    def _spaced(self) -> bool:
        """Whether the tokenizer puts a space before every text."""
        letter = self.encode(_LETTER)
        decoded = [str(self.tokenizer.decode(ids, skip_special_tokens=False)) for ids in (letter, letter + letter)]
        return decoded[0].strip() == _LETTER and decoded[1].split() == [_LETTER, _LETTER]

    def _as_text(self, mark: str) -> list[int]:
        """Ids of the characters of a control token."""
        readings = []
        for parts in ([mark], [mark[:1], mark[1:]], list(mark)):
            ids = [token for part in parts for token in self._going_on(self._without_added, part)]
            if ids and not self._ids.intersection(ids):
                readings.append(ids)
        if readings:
            return min(readings, key=lambda ids: ids.count(self.unknown))  # type: ignore[arg-type]
        raise DataError(
            f"a text spells the control token {mark}, which this tokenizer cannot read as text; take it out"
        )

    def _without_added(self, text: str) -> list[int]:
        """Ids of a text by the tokenizer's model alone: normalised and split, but with no added token in it."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:  # one in Python: added tokens are longer than one character
            return self.encode(text)
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        splits = [text]
        if backend.pre_tokenizer is not None:
            splits = [split for split, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for split in splits for token in backend.model.tokenize(split)]

    @cached_property
    def _drops(self) -> bool:
        """Whether what is not known is left out, without a token for it."""
        return not self.encode(_RARE)

    def loses(self, text: str) -> bool:
        """Whether the tokenizer leaves characters of a text out."""
        if not self._drops or not self.tokenizer.is_fast:
            return False
        found = self.tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        read = bytearray(len(text))
        for start, end in found["offset_mapping"]:
            read[start:end] = b"\1" * (end - start)
        return any(not there and not char.isspace() for there, char in zip(read, text, strict=True))
