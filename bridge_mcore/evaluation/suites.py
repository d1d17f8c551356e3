"""Suites: which benchmarks, where their problems come from, and how they are answered. One YAML file each.

A benchmark's problems come from `file` in the directory of `--data-dir` if it is there, else from the Hugging Face
hub (`source.dataset`), or are generated (`source.task`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from bridge_mcore.config.load import load_section, raise_problems
from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.rewards import plugins_among
from bridge_mcore.config.schema import DataSource
from bridge_mcore.config.types import (
    Count,
    Name,
    Probability,
    Section,
    Temperature,
    Text,
    Tokens,
    Tolerance,
    typed_path,
)
from bridge_mcore.errors import ConfigError

_HERE = Path(__file__).with_name("suites")
#: Suites that come with the package, by name.
SUITES: dict[str, Path] = {path.stem: path for path in sorted(_HERE.glob("*.yaml"))}


def is_record_name(name: str) -> bool:
    """Whether a benchmark's records can lie under this name: it is the name of a file, and leads nowhere else."""
    return bool(name) and not name.startswith(".") and all(c.isalnum() or c in "-_.+" for c in name)


class Answers(Section):
    """How problems are answered. What a benchmark leaves open is the suite's, and the command line's goes before."""

    max_new_tokens: Tokens | None = Field(None, description="longest answer, tokens")
    samples: Count | None = Field(None, description="answers to each problem")
    temperature: Temperature | None = Field(None, description="0 is greedy")
    top_p: Probability | None = Field(None, description="sample from the smallest set of tokens of this probability")


class Benchmark(Answers):
    name: Name = Field(description="what tables call it")
    file: Name | None = Field(None, description="its problems, as a path in the directory of --data-dir")
    source: DataSource = Field(DataSource(), description="how its rows are read; where they come from without `file`")
    tolerance: Tolerance = Field(
        0.0, description="relative difference at which a number with decimals counts as the right one"
    )

    @field_validator("name")
    @classmethod
    def _is_a_file_name(cls, name: str) -> str:
        if not is_record_name(name):
            raise ValueError("letters, digits, '-', '_', '+' and '.' only: records are written under this name")
        if name == "average":
            raise ValueError("is what tables call the mean over benchmarks; choose another name")
        return name


class Suite(Answers):
    about: Text = Field("", description="what it measures, and where its settings come from")
    benchmarks: list[Benchmark] = Field(description="in the order of tables")

    @property
    def plugins(self) -> frozenset[str]:
        """The rewards `plugin:…` that the suite's sources name: the only ones that its rows may name, too."""
        return plugins_among(benchmark.source.reward for benchmark in self.benchmarks)


@dataclass(frozen=True)
class HowAnswered:
    """How one benchmark's problems are answered, all levels taken together."""

    max_new_tokens: int
    samples: int
    temperature: float
    top_p: float


def how_answered(benchmark: Benchmark, suite: Suite, given: Answers) -> HowAnswered:
    """The command line's words, or else the benchmark's, or else the suite's.

    Raises ConfigError for several samples at temperature 0: they would be equal.
    """

    def chosen(name: str, default: Any) -> Any:
        return next((v for level in (given, benchmark, suite) if (v := getattr(level, name)) is not None), default)

    samples, temperature = chosen("samples", 1), chosen("temperature", 0.0)
    if samples > 1 and temperature == 0:
        raise ConfigError(
            f"--samples {samples} needs --temperature above 0: without, all answers to a problem of {benchmark.name} "
            "are equal"
        )
    return HowAnswered(chosen("max_new_tokens", 1024), samples, temperature, chosen("top_p", 1.0))


def load_suite(name: str, only: Sequence[str] = ()) -> Suite:
    """A suite that comes with the package, or one in a YAML file; with `only`, these of its benchmarks.

    Raises ConfigError for an unknown or wrong one.
    """
    path = SUITES.get(name)
    if path is None:
        path = typed_path(name, "--suite")
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(
                f"--suite {name}: there is no such suite{nearest(name, SUITES)}; choose from {', '.join(SUITES)}, "
                "or give a YAML file"
            )
    suite = load_section(Suite, path)
    names = [benchmark.name for benchmark in suite.benchmarks]
    if not names:
        raise ConfigError(f"{path} has no benchmarks")
    twice = sorted({n for n in names if names.count(n) > 1})
    unknown = [n for n in only if n not in names]
    raise_problems(
        [f"{path}: two benchmarks are called {n}" for n in twice]
        + [f"--only {n}: {name} has no such benchmark{nearest(n, names)}; it has {', '.join(names)}" for n in unknown],
        "this suite cannot be used",
    )
    if only:
        suite.benchmarks = [benchmark for benchmark in suite.benchmarks if benchmark.name in only]
    return suite


def place(benchmark: Benchmark, data_dir: Path | None) -> DataSource:
    """Where a benchmark's problems are read from. Raises ConfigError, with the mend, if they are nowhere."""
    source = benchmark.source.model_copy(update={"name": benchmark.name})
    if benchmark.file is not None and data_dir is not None:
        path = data_dir / benchmark.file
        if path.exists():
            return source.model_copy(update={"path": path, "dataset": None, "dataset_config": None,
                                             "dataset_revision": None})  # fmt: skip
    if source.path is not None or source.dataset is not None or source.task is not None:
        return source
    where = f"{data_dir / benchmark.file} does not exist" if data_dir and benchmark.file else "give --data-dir"
    raise ConfigError(
        f"{benchmark.name}: its problems come from a file, {benchmark.file}, in the directory of --data-dir; {where}"
    )


def suite_problems(suite: Suite, given: Answers, data_dir: Path | None) -> Iterator[str]:
    """What of a suite is nowhere, or cannot be answered so; nothing is loaded."""
    for benchmark in suite.benchmarks:
        try:
            how_answered(benchmark, suite, given)
            place(benchmark, data_dir)
        except ConfigError as error:
            yield str(error)
