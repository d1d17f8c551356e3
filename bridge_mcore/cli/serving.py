"""Options of commands that have a checkpoint answer: which engine, and whose servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bridge_mcore.errors import ConfigError

if TYPE_CHECKING:
    from bridge_mcore.config.engines import Servers

Engine = Annotated[Literal["embedded", "sglang", "vllm"], typer.Option(help="What generates the answers.")]
Urls = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="Servers that run already (may be repeated).", show_default=False),
]
ServerSettings = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="A key of the configuration's section `servers`, such as tensor=2 or count=4 (may be repeated).",
        show_default=False,
    ),
]


def servers_of(engine: str, urls: list[str], settings: list[str]) -> Servers:
    """The section `servers` that the options describe, checked as in a configuration. ConfigError for what is wrong."""
    from bridge_mcore.config.engine_checks import is_url, secret_problems, unreachable
    from bridge_mcore.config.json_file import one_line
    from bridge_mcore.config.load import load_values, raise_problems
    from bridge_mcore.config.schema import Config

    for option, given in (("--url", urls), ("--server", settings)):
        if given and engine == "embedded":
            raise ConfigError(f"{option} needs --engine sglang or vllm")
    values = [f"servers.{setting}" for setting in settings]
    servers = load_values(Config, values).servers
    patient = any(setting.startswith("start_seconds=") for setting in settings)
    for url in urls:
        if not is_url(url):
            raise ConfigError(f"--url {one_line(url, 200)} is no URL such as http://host:30000")
        if not patient and (reason := unreachable(url)) is not None:
            raise ConfigError(
                f"--url {url}: no server answers there ({reason}); start it first, or let this wait for it with "
                "--server start_seconds=600"
            )
    if servers.mode == "external" and not (urls or servers.urls):
        raise ConfigError("--server mode=external needs --url, of the servers that run already")
    if urls:
        servers = servers.model_copy(update={"mode": "external", "urls": urls})
    raise_problems([*secret_problems(servers)], "these servers cannot be used")
    return servers
