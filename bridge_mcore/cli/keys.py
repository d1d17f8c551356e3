"""`bridge-mcore keys`: every key of a configuration, with its type, default and meaning."""

from __future__ import annotations

from typing import Annotated

import typer


def keys(
    prefix: Annotated[
        str, typer.Argument(metavar="SECTION", help="Only the keys of this section, or one key.", show_default=False)
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List the keys of a configuration, with types, defaults and meanings.

    \b
    Examples:
      bridge-mcore keys
      bridge-mcore keys optimizer
      bridge-mcore keys rollout.top_p
    """
    from bridge_mcore.config.keys import key_help

    typer.echo(key_help(prefix, markdown=markdown))
