"""What `bridge-mcore selftest` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Parts of the test, in the order in which they run.
SECTIONS = ("environment", "collectives", "layouts", "slots", "generation", "checkpoint")
SHAPES = ("tiny", "1.5b", "3b", "7b")


@dataclass(frozen=True)
class SelftestOptions:
    """One self-test.

    Attributes:
        device: cpu or cuda.
        processes: on this machine; under torchrun its world counts.
        model_shape: one of SHAPES, for layouts, slots and generation.
        dtypes: of the live weights; layouts and slots are tested in each.
        only: sections or rows that are run; empty for all.
        json: file that gets the results.
        limit: seconds that a row may take.
        directory: where temporary files go; None for the system's temporary directory.
        scratch: the directory of a launcher that reports for its ranks; it is empty. None without one.
    """

    device: str = "cpu"
    processes: int = 2
    model_shape: str = "tiny"
    dtypes: tuple[str, ...] = ("float32",)
    only: tuple[str, ...] = ()
    json: Path | None = None
    limit: float = 300.0
    directory: Path | None = None
    scratch: Path | None = None

    def wants(self, section: str, name: str) -> bool:
        """Whether a row runs."""
        return not self.only or section in self.only or name in self.only
