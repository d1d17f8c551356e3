"""What is never written down: values of servers' environment variables, keys and tokens among their arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

HIDDEN = "<hidden>"
#: Serialisation context in which secrets are written out: for files that only the run's own processes read.
REVEALED = {"secrets": True}

_SECRET_OPTION = re.compile(r"--?[\w-]*(keys?|token|password|passwd|passphrase|secret|credentials?)", re.IGNORECASE)


def is_secret_option(argument: str) -> bool:
    """Whether an argument of a command line names a secret: --api-key, --hf-token, --ssl-keyfile-password."""
    return _SECRET_OPTION.fullmatch(argument.partition("=")[0]) is not None


def hide_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments with HIDDEN in place of what follows a secret's option."""
    shown: list[str] = []
    hiding = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if is_secret_option(argument):
            shown.append(f"{name}={HIDDEN}" if equals else argument)
            hiding = not equals
        elif argument.startswith("-"):
            shown.append(argument)
            hiding = False
        else:
            shown.append(HIDDEN if hiding else argument)
    return shown


def hide_values(assignments: Sequence[str]) -> list[str]:
    """NAME of each NAME=VALUE."""
    return [entry.partition("=")[0] for entry in assignments]


def given_values(assignments: Sequence[str]) -> dict[str, str]:
    """Those of the environment variables whose value is given; NAME alone stands for the process's own."""
    return dict(entry.split("=", 1) for entry in assignments if "=" in entry)


def unset_names(assignments: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Variables that are given as NAME alone and are not set."""
    return [entry for entry in assignments if "=" not in entry and entry not in environment]


def has_password(url: str) -> bool:
    """Whether a URL carries a user's name or password."""
    return "@" in urlsplit(url).netloc
