r"""Tokenizers for generated tasks: fast HF tokenizers, so that SGLang and vLLM serve the quickstart's model too.

One token per number, label and mark; decoding joins them without spaces, so that ``decode(encode(text)) == text`` for
every text of the task.

Every word is an *added token*, matched (the longest first: 12 is one token) before anything else looks at the text.
That is on purpose: beside a config.json of model_type qwen2, AutoTokenizer of transformers 5 ignores the saved class
and puts Qwen2's own pre-tokenizer, which cuts numbers into digits, around the saved vocabulary. Added tokens survive.
"""

from __future__ import annotations

from string import ascii_lowercase
from typing import TYPE_CHECKING

from bridge_mcore.data.tasks import LARGEST_NUMBER, TASKS
from bridge_mcore.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, BOS, UNKNOWN = "<pad>", "<eos>", "<bos>", "<unk>"
MARKS = ("Q:", "A:", "\\boxed{", "}", "=")


def task_vocabulary() -> list[str]:
    """Tokens of the running sums by id, the specials first, filled up to a multiple of 8 (tensor parallelism)."""
    tokens = [PAD, EOS, BOS, UNKNOWN, *MARKS, *ascii_lowercase, *map(str, range(LARGEST_NUMBER + 1))]
    return tokens + [f"<reserved_{i}>" for i in range(-len(tokens) % 8)]


def task_tokenizer(task: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a generated task; `save_pretrained` makes it loadable through AutoTokenizer.

    It ends sequences with <eos>, pads with <pad>, knows <bos> but puts none in front, and reads what is not of the
    task as <unk>. Raises ConfigError for an unknown task.
    """
    if task not in TASKS:
        raise ConfigError(f"no tokenizer for the task '{task}'; there is {', '.join(TASKS)}")
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = task_vocabulary()
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    words = [token for token in vocabulary if not token.startswith("<")]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
