"""Files that come with the package and have names: examples of configurations."""

from __future__ import annotations

from pathlib import Path

from bridge_mcore.config.nearest import nearest
from bridge_mcore.errors import ConfigError

_SUFFIXES = (".yaml", ".yml")
#: The repository's `examples/`: a link in a clone, the files themselves in an installed package.
_EXAMPLES = Path(__file__).parents[1] / "examples"


def examples() -> list[str]:
    """Names of the example configurations."""
    return sorted(path.stem for path in _EXAMPLES.glob("*.yaml"))


def config_path(given: Path) -> Path:
    """The file that a path or an example's name means; a directory called like an example is not meant.

    Raises ConfigError, with the nearest name, for a word that is neither.
    """
    if given.suffix in _SUFFIXES or given.is_file():
        return given
    if str(given) in examples():
        return _EXAMPLES / f"{given}.yaml"
    if given.exists() or len(given.parts) > 1:
        return given
    raise ConfigError(
        f"there is no example '{given}'{nearest(str(given), examples())}; give a YAML file, or one of "
        f"{', '.join(examples())}"
    )
