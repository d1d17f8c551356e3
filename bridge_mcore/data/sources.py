"""Raw rows from files and from Hugging Face datasets, each with the place that an error message should name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bridge_mcore.config.schema import DataSource
from bridge_mcore.errors import DataError

Placed = tuple[str, dict[str, Any]]
SUFFIXES = (".jsonl", ".json", ".parquet")


def read_file(path: Path, limit: int | None = None) -> Iterator[Placed]:
    """Yield (place, row) of a .jsonl, .json or .parquet file; at most `limit` rows.

    Raises DataError for a missing, unreadable, wrongly named or malformed file.
    """
    path = path.expanduser()
    if path.is_dir():
        here = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        raise DataError(f"{path} is a directory; name one file{' in it: ' + ', '.join(here[:8]) if here else ''}")
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: cannot read files ending in '{path.suffix}'; choose from {', '.join(SUFFIXES)}")
    if not path.exists():
        raise DataError(f"data file {path} does not exist (looked for {path.absolute()})")
    read = {".jsonl": _read_lines, ".json": _read_json, ".parquet": _read_parquet}[path.suffix]
    return islice(_guarded(read, path), limit)


def _guarded(read: Any, path: Path) -> Iterator[Placed]:
    try:
        yield from read(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}: {error.reason}); convert it first") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_lines(path: Path) -> Iterator[Placed]:
    # Not str.splitlines: it also splits at U+2028 and the like, which JSON strings may hold. utf-8-sig drops a BOM.
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                yield place, _as_row(_parse(line, place), place)


def _read_json(path: Path) -> Iterator[Placed]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):  # JSON lines under the other suffix
            yield from _read_lines(path)
            return
        place = f"{path}, line {error.lineno}"
        raise DataError(f"{place}: invalid JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{path}: its JSON is nested too deeply") from None
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a JSON {type(rows).__name__}; a list of objects is needed, one a problem")
    for number, row in enumerate(rows, start=1):
        place = f"{path}, row {number}"
        yield place, _as_row(row, place)


def _read_parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no readable Parquet file (truncated?): {_one_line(error)}") from None
    except OSError as error:  # Arrow reports a damaged page as OSError without errno
        raise DataError(f"{path} cannot be read: {error.strerror or _one_line(error)}") from None


def read_dataset(source: DataSource) -> Iterator[Placed]:
    """Yield (place, row) of a Hugging Face dataset, at a fixed revision if the source names one.

    Raises DataError when `datasets` is missing or the hub does not deliver; it says how to use a file instead.
    """
    name = f"dataset {source.dataset}" + (f" ({source.dataset_config})" if source.dataset_config else "")
    mend = (
        "Without the hub: put the data on this machine as .jsonl, .json or .parquet and give `path` instead of "
        "`dataset` (tools/get_gsm8k.py does it for GSM8K on a machine that has the hub)."
    )
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{name} needs the package `datasets` ({error}): pip install datasets. {mend}") from None
    try:
        rows = datasets.load_dataset(
            source.dataset, source.dataset_config, split=source.split, revision=source.dataset_revision
        )
    except Exception as error:  # the hub's clients raise dozens of types, none of them ours to tell apart
        cause = f"{type(error).__name__}: {_one_line(error)}"
        raise DataError(f"{name}, split {source.split} cannot be loaded. {cause} {mend}") from None
    for number, row in enumerate(islice(rows, source.limit), start=1):
        yield f"{name}, split {source.split}, row {number}", dict(row)


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: invalid JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{place}: its JSON is nested too deeply") from None


def _as_row(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place}: a JSON object is needed, this is a {type(row).__name__}")
    return row


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"
