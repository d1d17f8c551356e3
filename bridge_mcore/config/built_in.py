"""Files that come with the package and have names: examples of configurations, recipes."""

from __future__ import annotations

from pathlib import Path

from bridge_mcore.config.nearest import nearest
from bridge_mcore.errors import ConfigError

#: The repository's `examples/`: a link in a clone, the files themselves in an installed package.
EXAMPLES = Path(__file__).parents[1] / "examples"


def names_in(folder: Path) -> list[str]:
    """Names of the package's files in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def named_file(given: Path, folder: Path, kind: str) -> Path:
    """The file that a path means, or the name of one in `folder`; a directory called like one is not meant.

    Raises ConfigError, with the nearest name, for what is neither; kind: what it is called there.
    """
    if given.suffix in (".yaml", ".yml") or given.is_file():
        return given
    known = names_in(folder)
    if str(given) in known:
        return folder / f"{given}.yaml"
    if given.exists():
        return given
    raise ConfigError(
        f"there is no {kind} '{given}'{nearest(str(given), known)}; give a YAML file, or one of {', '.join(known)}"
    )


def config_path(given: Path) -> Path:
    """The configuration that a path or an example's name means."""
    return named_file(given, EXAMPLES, "example")
