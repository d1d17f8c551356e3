"""The command line `bridge-mcore`.

Its rules: `--help` answers at once, so torch is imported only inside commands; input that a user can mend gives one
message without a traceback and exit code 2 (or what the error says); anything else is a bug and shows where.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from bridge_mcore import __version__
from bridge_mcore.cli import convert, data, evaluate, generate, keys, replay, report, selftest, train, verify
from bridge_mcore.errors import BridgeError
from bridge_mcore.monitoring.text import visible
from bridge_mcore.platform.quiet import quieten
from bridge_mcore.platform.ranks import joined

app = typer.Typer(
    name="bridge-mcore",
    help="Train language models by cooperative SFT and RL (BRIDGE) on Megatron-Core.\n\n"
    "\b\nFirst steps:\n"
    "  bridge-mcore train examples/quickstart.yaml\n"
    "  bridge-mcore report runs/quickstart\n"
    '  bridge-mcore generate runs/quickstart/export --template plain --prompt "Q:a3b2c1A:"\n',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: it reads the same in a terminal, a log and a narrow window
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("scores")(evaluate.scores)
app.command("generate")(generate.generate)
app.command("replay")(replay.replay)
app.command("report")(report.report)
app.command("selftest")(selftest.selftest)
app.command("verify")(verify.verify)
app.add_typer(convert.app, name="convert")
app.add_typer(data.app, name="data")
app.command("keys")(keys.keys)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bridge-mcore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line (default: this process's) and ends the process with its exit code."""
    quieten()
    try:
        app(args=None if arguments is None else list(arguments), prog_name="bridge-mcore")
    except BridgeError as error:
        if os.environ.get("BRIDGE_MCORE_DEBUG", "") not in ("", "0"):
            traceback.print_exc()
        if not error.said:
            _say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # typer itself ends with 130 where it sees one first
        sys.exit(130)
    except Exception as error:
        if joined() and any(sign in str(error) for sign in _LOST_PEER):
            _say(f"error: rank {os.environ['RANK']} lost its connection to another rank, which has ended")
            sys.exit(1)
        traceback.print_exc()
        _say("error: this is a bug in bridge-mcore; please report it, with the command and all of the lines above")
        sys.exit(1)


#: How gloo and NCCL say that the other side is gone.
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process has terminated")


def _say(text: str) -> None:
    print(visible(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
