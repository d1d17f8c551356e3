r"""Prompt templates: from a problem to the tokens that the policy continues, and to an expert's whole sequence.

plain       the problem's text as it is (generated tasks, base models on prepared prompts)
chat        the tokenizer's own chat template
qwen-boxed  ChatML as text, the form of SimpleRL's base recipe, for Qwen base models
abel        "Question: … Answer: Let's think step by step.", for weaker base models

With chat and qwen-boxed the user asks for steps and a `\boxed{}` answer where the reward is math (`data.instruction`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from bridge_mcore.config.json_file import one_line
from bridge_mcore.config.nearest import nearest
from bridge_mcore.data.chat_render import ChatTemplateError, render_chat
from bridge_mcore.data.control import TextCodec, begins_answer
from bridge_mcore.data.notes import Notes
from bridge_mcore.data.problem import Problem, answer_line
from bridge_mcore.data.texts import beginning, check_unicode, token_ids
from bridge_mcore.data.thoughts import THOUGHTS, closed_at_end, closes_unopened, opened_at_end, opening_of
from bridge_mcore.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("plain", "chat", "qwen-boxed", "abel")
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
QWEN_SYSTEM = "You are a helpful assistant."
_CHATML = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
_ABEL = "Question:\n{question}\nAnswer:\nLet's think step by step.\n"
_PROBE = "bridge mcore probe"
#: A question: with capitals and small letters, and long enough to be cut.
_USER = " ".join(["Bridge Mcore", *map(str, range(50)), "Probe"])
#: The word that stands for what a template says by itself (`data.instruction`).
AUTO = "auto"
#: Characters of a text that is not read a second time.
_LONG = 1 << 20
#: Characters of a question from which on a trace that begins with them repeats it.
_QUESTION = 8
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

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        system_prompt: str | None = None,
        instruction: str | None = AUTO,
        notes: Notes | None = None,
    ) -> None:
        """
        Args:
            system_prompt: what comes first where a problem has no system message of its own.
            instruction: sentence that follows each question; AUTO: the template's, None: none.
            notes: gets what was done to texts, counted.
        """
        self.tokenizer, self.name, self.system_prompt, self.instruction = tokenizer, name, system_prompt, instruction
        self.notes = Notes() if notes is None else notes
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
        Raises DataError for text that is not valid Unicode, and for a system message that has no place.
        """
        return self._prompt(problem, most)[0]

    def _prompt(self, problem: Problem, most: int | None) -> tuple[list[int], str]:
        """(token ids, the end of the text that they are of)."""
        system = self._system(problem)
        texts = [problem.prompt + self._instruction(problem), *([] if system is None else [system])]
        for text in texts:
            check_unicode(text)
        ends: list[str] = []

        def shorten(text: str) -> str:
            check_unicode(text)
            ends.append(text[-100:])
            return beginning(self.tokenizer, text, most)

        ids = self.texts.rendered(self._render, texts, shorten)
        self._note_prompt(problem, texts, ids, ends[0])
        return [*([] if self.name == "chat" else self._bos), *ids], ends[0]

    def _render(self, texts: list[str]) -> str:
        """What the template makes of a question and, where there is one, a system message."""
        question, system = texts[0], texts[1] if len(texts) > 1 else None
        if self.name == "chat":
            return self._apply_chat(self._messages(question, system), True)
        if self.name == "abel":
            return _ABEL.format(question=question)
        if self.name == "qwen-boxed":
            return _CHATML.format(system=QWEN_SYSTEM if system is None else system, user=question)
        return question

    def _system(self, problem: Problem) -> str | None:
        if problem.system is None:
            if self.system_prompt is not None and self.name == "chat" and not self._takes_system:
                raise ConfigError(
                    f"data.system_prompt: the chat template of {self._tokenizer_name} leaves system messages out; put "
                    "the text into data.instruction, or take another template"
                )
            return self.system_prompt
        if self.name in ("plain", "abel") or (self.name == "chat" and not self._takes_system):
            if not problem.system.strip():  # it says that there is none
                return None
            raise DataError(
                f"{problem} has a system message, and the template {self.name} has no place for it; set "
                "system_messages: drop on its data source, or take another data.template"
            )
        return problem.system

    @cached_property
    def texts(self) -> TextCodec:
        """How texts become tokens beside those that the template itself writes."""
        written = self._written()
        try:
            ends = self.stop_tokens
        except ConfigError:  # said where an end is needed
            ends = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return TextCodec(self.tokenizer, ends, written)

    def _written(self) -> list[int]:
        """Tokens that a chat template writes by itself; of those before the question none that begins an answer.

        Raises ConfigError for a template that changes or leaves out what the user says.
        """
        if self.name != "chat":
            return []
        try:
            text = self._apply_chat(self._messages(_USER, self.system_prompt), True)
        except ConfigError:  # said of the first problem, which may have a system message
            return []
        if _USER not in text:
            raise ConfigError(
                f"data.template: the chat template of {self._tokenizer_name} changes or leaves out what the user says; "
                "take another template, such as qwen-boxed or plain"
            )
        before, _, after = text.rpartition(_USER)
        # What a system message of the template's own says of thoughts is for answers to spell.
        return [*(i for i in self._text_ids(before) if not begins_answer(self.tokenizer, i)), *self._text_ids(after)]

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the chat template shows a system message; also where it refuses one, which says more by itself."""
        try:
            return _PROBE in self._apply_chat(self._messages("question", _PROBE), True)
        except ConfigError:
            return True

    def _instruction(self, problem: Problem) -> str:
        """What follows the question. By itself a template asks for a box where one is read, and for nothing else."""
        if self.instruction == AUTO:
            return INSTRUCTION if self.name in ("chat", "qwen-boxed") and problem.reward == "math" else ""
        return f"\n{self.instruction}" if self.instruction else ""

    def trace(self, problem: Problem, most: int | None = None) -> EncodedTrace:
        """Prompt, expert trace and end-of-turn token. Raises DataError if the problem has no trace.

        `most` is as in `prompt`, of the prompt and of the trace.

        The trace is tokenized apart from the prompt, as a policy's response begins at a token boundary too: so the
        prompt's tokens are an exact prefix, and no token spans both.
        """
        trace = self._without_end(problem, problem.trace or "")
        if not trace.strip():
            raise DataError(
                f"{problem} has no expert trace to learn from; give data.sft a source with traces (trace_field)"
            )
        prompt, end = self._prompt(problem, most)
        text = self._going_on(problem, trace, end)
        check_unicode(text)
        text = beginning(self.tokenizer, text, most)
        response = self.texts.literal(text)
        self._note_text(problem, "trace", [text], response)
        if problem.finished:  # one that was cut has not come to its end
            response.append(self.end_token)
        return EncodedTrace(prompt + response, len(prompt), problem)

    def _without_end(self, problem: Problem, trace: str) -> str:
        """A trace without the control tokens that it spells at its end, and before a box that reading its row added."""
        line = answer_line(problem.answer)
        if trace.endswith(line) and (whole := self._without_marks(trace[: -len(line)])) + line != trace:
            self.notes.add("ended_traces", str(problem))
            return whole + line
        if (text := self._without_marks(trace)) != trace:
            self.notes.add("ended_traces", str(problem))
        return text

    def _without_marks(self, trace: str) -> str:
        marks, text = tuple(self.texts.marks), trace
        while marks and (ending := text.rstrip()).endswith(marks):
            mark = max((m for m in marks if ending.endswith(m)), key=len)
            text = ending.removesuffix(mark).rstrip()
        return text

    def _going_on(self, problem: Problem, trace: str, prompt_end: str) -> str:
        """A trace as it goes on from a prompt: what the prompt has opened is not opened again."""
        opened, opening = opened_at_end(prompt_end), opening_of(trace)
        if opened is not None and opening == opened[0]:
            self.notes.add("opened_twice", str(problem))
            trace = trace.removeprefix(opening).removeprefix(opened[1])
        elif opening is not None and closed_at_end(prompt_end):
            self.notes.add("opened_again", str(problem))
        if opened is None and closes_unopened(trace):
            self.notes.add("never_opened", str(problem))
        begun = opened[0] if opened is not None else opening
        if begun is not None and problem.finished and THOUGHTS[begun] not in trace:
            self.notes.add("never_closed", str(problem))
        question = problem.prompt.strip()
        if len(question) >= _QUESTION and trace.startswith(question):
            self.notes.add("repeats_prompt", str(problem))
        return trace

    def _note_prompt(self, problem: Problem, texts: list[str], ids: list[int], end: str) -> None:
        if problem.system is not None:
            self.notes.add("system_kept", str(problem))
        if self._instruction(problem) == INSTRUCTION and "\\boxed" in problem.prompt:
            self.notes.add("asked_twice", str(problem))
        if opened_at_end(end) is not None:
            self.notes.add("thought_opened", str(problem))
        if self._is_dated:
            self.notes.add("dated_prompts", str(problem))
        self._note_text(problem, "prompt", texts, ids)

    @cached_property
    def _is_dated(self) -> bool:
        """Whether the chat template asks for the date of the day."""
        return self.name == "chat" and "strftime_now" in str(self.tokenizer.chat_template)

    def _note_text(self, problem: Problem, what: str, texts: list[str], ids: list[int]) -> None:
        if marks := [mark for text in texts for mark in self.texts.spelt(text)]:
            self.notes.add(f"control_{what}s", f"{marks[0]} in {problem}")
            self.notes[f"{what}_marks"] += len(marks)
        if unknown := self.texts.unknown_in(texts, ids):
            self.notes.add(f"unknown_{what}s", str(problem))
            self.notes[f"unknown_{what}_tokens"] += unknown
        if any(len(text) < _LONG and self.texts.loses(text) for text in texts):
            self.notes.add(f"lost_{what}s", str(problem))

    @cached_property
    def end_token(self) -> int:
        """Id of the token that ends the policy's turn: the chat template's own mark, else the tokenizer's EOS."""
        if self.name == "qwen-boxed":
            return self._text_ids("<|im_end|>")[0]
        if self.name == "chat":
            asked = self._messages("question", self.system_prompt)
            text = self._apply_chat([*asked, {"role": "assistant", "content": _PROBE}], False)
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

    def _messages(self, user: str, system: str | None) -> list[dict[str, str]]:
        return [*([] if system is None else [{"role": "system", "content": system}]), {"role": "user", "content": user}]

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
                + ("; try system_messages: drop on the data source" if self._is_of_a_row(messages) else "")
                + "; choose another template, such as plain"
            ) from error

    def _is_of_a_row(self, messages: list[dict[str, str]]) -> bool:
        return messages[0]["role"] == "system" and messages[0]["content"] not in (self.system_prompt, _PROBE)

    def _text_ids(self, text: str) -> list[int]:
        return token_ids(self.tokenizer, text)

    @cached_property
    def _bos(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("")["input_ids"][:1] == [bos] else []

    @property
    def _tokenizer_name(self) -> str:
        return f"the tokenizer {self.tokenizer.name_or_path}".rstrip()


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
