"""The command line `bridge-mcore`.

Its rules: `--help` answers at once, so torch is imported only inside commands; input that a user can mend gives one
message without a traceback and exit code 2 (or what the error says); anything else is a bug and shows where.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from bridge_mcore import __version__
from bridge_mcore.cli import convert, data, evaluate, generate, keys, replay, report, selftest, train, verify
from bridge_mcore.cli.refusals import refusal
from bridge_mcore.config.json_file import one_line, printable
from bridge_mcore.errors import BridgeError
from bridge_mcore.monitoring.text import visible
from bridge_mcore.platform.quiet import quieten
from bridge_mcore.platform.ranks import joined

app = typer.Typer(
    name="bridge-mcore",
    help="Train language models by cooperative SFT and RL (BRIDGE) on Megatron-Core.\n\n"
    "\b\nFirst steps:\n"
    "  bridge-mcore train quickstart\n"
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


#: Commands that only print what the package itself knows.
_LIGHT = ("keys",)


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in _LIGHT:
        from bridge_mcore.config.machine import require_descriptors

        require_descriptors()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line (default: this process's) and ends the process with its exit code."""
    quieten()
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        ended = app(args=given, prog_name="bridge-mcore", standalone_mode=False)
    except BridgeError as error:
        _refuse(error)
    except _UsageError as error:
        _explain(error)
    except KeyboardInterrupt:  # typer itself ends with 130 where it sees one first
        sys.exit(130)
    except typer.Abort:
        _say("error: stopped")
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and (refused := refusal(error, given)) is not None:
            _refuse(refused)
        if joined() and any(sign in str(error) for sign in _LOST_PEER):
            _say(f"error: rank {os.environ['RANK']} lost its connection to another rank, which has ended")
            sys.exit(1)
        traceback.print_exc()
        _say("error: this is a bug in bridge-mcore; please report it, with the command and all of the lines above")
        sys.exit(1)
    sys.exit(ended if isinstance(ended, int) else 0)


def _refuse(error: BridgeError) -> NoReturn:
    """Ends with an error's message alone; what raised it is of interest to programmers."""
    if os.environ.get("BRIDGE_MCORE_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    if not error.said:
        _say("\n".join(printable(line, 2000) for line in f"error: {error}".split("\n")))
    sys.exit(error.exit_code)


def _explain(error: Any) -> NoReturn:
    """Ends with one line about a command line that cannot be read, or with the help where nothing was asked for."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = error.ctx.command_path if error.ctx is not None else "bridge-mcore"
        _say(f"error: {one_line(error.format_message(), 500)} (see {command} --help)")
    sys.exit(error.exit_code)


#: typer's own class; it stands in one of two modules, by typer's version.
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")

#: How gloo and NCCL say that the other side is gone.
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process has terminated")


def _say(text: str) -> None:
    print(visible(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
