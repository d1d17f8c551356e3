"""Training methods, one file each."""

from __future__ import annotations

from bridge_mcore.config.schema import Config
from bridge_mcore.methods.base import Method
from bridge_mcore.methods.bridge import Bridge
from bridge_mcore.methods.cold_start import ColdStart
from bridge_mcore.methods.rl_zero import RLZero
from bridge_mcore.methods.sft import SupervisedFineTuning

_METHODS: dict[str, type[Method]] = {
    "bridge": Bridge,
    "rl_zero": RLZero,
    "sft": SupervisedFineTuning,
    "cold_start": ColdStart,
}


def make_method(config: Config) -> Method:
    """The method that `config.method.name` (already validated) names."""
    return _METHODS[config.method.name](config)
