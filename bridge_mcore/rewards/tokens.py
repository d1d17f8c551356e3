"""A formula, token by token."""

from __future__ import annotations

from bridge_mcore.rewards.notation import PLAIN_WORDS, TOKEN


class Unreadable(Exception):
    """This is no formula."""


class Foreign(Unreadable):
    """A notation that this reader leaves to others: ambiguous, or with an operator that it does not know."""


class Tokens:
    """The tokens of a text from a place on that moves."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1

    def peek(self) -> str:
        """The next token, not taken; "" at the end. A word is its first letter, or a known name."""
        self.space()
        if self.at >= len(self.text):
            return ""
        found = TOKEN.match(self.text, self.at)
        if found is None:
            raise Unreadable
        if found.lastgroup == "word":
            word = found[0]
            if word in PLAIN_WORDS:
                return word
            if len(word) > 3:
                raise Unreadable  # a word, not a product of letters
            return word[0]
        return found[0]

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if expected and token != expected:
            raise Unreadable
        self.at += len(token)
        return token
