r"""Prompt templates: from a problem to the tokens that the policy continues, and to an expert's whole sequence.

plain       the problem's text as it is (generated tasks, base models on prepared prompts)
chat        the tokenizer's own chat template; the user asks for steps and a `\boxed{}` answer
qwen-boxed  ChatML as text, the form of SimpleRL's base recipe, for Qwen base models
abel        "Question: … Answer: Let's think step by step.", for weaker base models
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from bridge_mcore.config.json_file import one_line
from bridge_mcore.config.nearest import nearest
from bridge_mcore.data.chat_render import ChatTemplateError, render_chat
from bridge_mcore.data.problem import Problem
from bridge_mcore.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("plain", "chat", "qwen-boxed", "abel")
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
QWEN_SYSTEM = "You are a helpful assistant."
_CHATML = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
_ABEL = "Question:\n{question}\nAnswer:\nLet's think step by step.\n"
_PROBE = "bridge mcore probe"
#: Texts at which an answer is over though no end token came: a base model goes on with the next question. ChatML and
#: chat templates end their turns with a token.
STOP_TEXTS = {"abel": ("\nQuestion:",)}


@dataclass(frozen=True, slots=True)
class EncodedTrace:
    """An expert sequence: `tokens[:prompt_length]` is the prompt, the rest the trace and the end-of-turn token.

    A trace that was cut has no end-of-turn token: it would teach to stop in the middle of a thought.
    """

    tokens: list[int]
    prompt_length: int
    problem: Problem | None = None


class PromptTemplate:
    """One template over one tokenizer: built once, then applied to every problem.

    Raises ConfigError if the template does not suit the tokenizer, naming the mend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, system_prompt: str | None = None) -> None:
        self.tokenizer, self.name, self.system_prompt = tokenizer, name, system_prompt
        if name not in TEMPLATES:
            raise ConfigError(
                f"data.template: no template '{name}'{nearest(name, TEMPLATES)}; choose from {', '.join(TEMPLATES)}"
            )
        if system_prompt is not None and name in ("plain", "abel"):
            raise ConfigError(f"data.system_prompt: the template {name} has no place for it; use chat or qwen-boxed")
        if name == "chat" and not tokenizer.chat_template:
            raise ConfigError(
                f"data.template: chat needs a tokenizer with a chat template, and {self._tokenizer_name} has none; "
                "set data.template to plain, abel or qwen-boxed, or use an instruction-tuned model's tokenizer"
            )
        if name == "qwen-boxed":
            for token in ("<|im_start|>", "<|im_end|>"):
                if len(self._text_ids(token)) != 1:
                    raise ConfigError(
                        f"data.template: qwen-boxed needs the token {token}, and {self._tokenizer_name} has none; "
                        "set data.template to abel, plain or chat"
                    )

    def prompt(self, problem: Problem, most: int | None = None) -> list[int]:
        """Token ids that the policy continues; with BOS only where the tokenizer puts one by default.

        most: of a prompt that is far longer than so many tokens only those of its beginning are given: more than
            `most`, and not all (see `beginning`).
        Raises DataError for text that is not valid Unicode.
        """
        if self.name == "chat":
            messages = self._messages(problem.prompt + instruction(problem))
            return self._text_ids(self._apply_chat(messages, True), most)
        text = problem.prompt
        if self.name == "abel":
            text = _ABEL.format(question=text)
        elif self.name == "qwen-boxed":
            system = QWEN_SYSTEM if self.system_prompt is None else self.system_prompt
            text = _CHATML.format(system=system, user=text + instruction(problem))
        return [*self._bos, *self._text_ids(text, most)]

    def trace(self, problem: Problem, most: int | None = None) -> EncodedTrace:
        """Prompt, expert trace and end-of-turn token. Raises DataError if the problem has no trace.

        `most` is as in `prompt`, of the prompt and of the trace.

        The trace is tokenized apart from the prompt, as a policy's response begins at a token boundary too: so the
        prompt's tokens are an exact prefix, and no token spans both.
        """
        if not problem.trace or not problem.trace.strip():
            raise DataError(
                f"{problem} has no expert trace to learn from; give data.sft a source with traces (trace_field)"
            )
        prompt = self.prompt(problem, most)
        response = self._text_ids(problem.trace, most)
        # Some traces carry their end mark as text; one that was cut has not come to its end.
        if problem.finished and (not response or response[-1] != self.end_token):
            response.append(self.end_token)
        return EncodedTrace(prompt + response, len(prompt), problem)

    @cached_property
    def end_token(self) -> int:
        """Id of the token that ends the policy's turn: the chat template's own mark, else the tokenizer's EOS."""
        if self.name == "qwen-boxed":
            return self._text_ids("<|im_end|>")[0]
        if self.name == "chat":
            text = self._apply_chat([*self._messages("question"), {"role": "assistant", "content": _PROBE}], False)
            marks = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
            for token in self._text_ids(text.rpartition(_PROBE)[2]):
                if token in marks:
                    return token
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(f"{self._tokenizer_name} has no end-of-sequence token; set eos_token in its config")
        return self.tokenizer.eos_token_id

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Those of STOP_TEXTS that are this template's."""
        return STOP_TEXTS.get(self.name, ())

    @property
    def stop_tokens(self) -> list[int]:
        """Ids at which a rollout stops: the end of the turn, then the tokenizer's EOS where that is another one."""
        eos = self.tokenizer.eos_token_id
        return [self.end_token] if eos in (None, self.end_token) else [self.end_token, eos]

    def _messages(self, user: str) -> list[dict[str, str]]:
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": user}]

    def _apply_chat(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        for message in messages:
            check_unicode(message["content"])
        try:
            special = self.tokenizer.special_tokens_map
            return render_chat(self.tokenizer.get_chat_template(), messages, special, generation_prompt)
        except (ChatTemplateError, ValueError) as error:  # ValueError: of several templates none is the default
            raise ConfigError(
                f"data.template: the chat template of {self._tokenizer_name} refuses the messages ({one_line(error)})"
                + ("; try without data.system_prompt" if self.system_prompt is not None else "")
                + "; choose another template, such as plain"
            ) from error

    def _text_ids(self, text: str, most: int | None = None) -> list[int]:
        check_unicode(text)
        return _ids(self.tokenizer, beginning(self.tokenizer, text, most))

    @cached_property
    def _bos(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("")["input_ids"][:1] == [bos] else []

    @property
    def _tokenizer_name(self) -> str:
        return f"the tokenizer {self.tokenizer.name_or_path}".rstrip()


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def check_unicode(text: str) -> None:
    """Raise DataError for a text that no tokenizer takes: half of a surrogate pair has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text is not valid Unicode: half of a surrogate pair at character {error.start + 1}; mend the text"
        ) from None


def is_far_over(text: str, most: int | None) -> bool:
    """Whether a text has so many characters that, within `most` tokens, each would stand for dozens of them."""
    return most is not None and len(text) > 64 * most + 10_000


def beginning(tokenizer: PreTrainedTokenizerBase, text: str, most: int | None) -> str:
    """The text; or, where it is far longer than `most` tokens, as much of it as makes more than twice as many.

    Tokenizing takes hundreds of bytes a character: what cannot fit is not tokenized to its end. Nothing is assumed of
    the tokenizer (one may read a whole text as one unknown token): what of the beginning makes too few tokens is taken
    four times as long.
    """
    if most is None or not is_far_over(text, most):
        return text
    size = 4 * most + 1000
    while size < len(text):
        if len(_ids(tokenizer, text[:size])) > 2 * most + 100:
            return text[:size]
        size *= 4
    return text


def instruction(problem: Problem) -> str:
    """What chat and qwen-boxed add to a question: where the answer goes. Tasks of other rewards say it themselves."""
    return INSTRUCTION if problem.reward == "math" or problem.reward.startswith("plugin:") else ""


def render_prompt(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, template: str, system_prompt: str | None = None
) -> list[int]:
    """Prompt tokens of one problem; for many, build a :class:`PromptTemplate` once."""
    return PromptTemplate(tokenizer, template, system_prompt).prompt(problem)


def render_trace(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, template: str, system_prompt: str | None = None
) -> EncodedTrace:
    """Prompt and trace tokens of one problem; for many, build a :class:`PromptTemplate` once."""
    return PromptTemplate(tokenizer, template, system_prompt).trace(problem)
