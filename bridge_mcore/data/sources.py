"""Raw rows from files and from Hugging Face datasets, each with the place that an error message should name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from bridge_mcore.config.json_file import BadJson, once, one_line, parse_json
from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.notes import Notes
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


def files_of(path: Path) -> list[Path]:
    """The data files that a path means: the file itself, or those anywhere in a directory, in the order of their names.

    Raises DataError where there is none.
    """
    path = path.expanduser()
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file() and not _hidden(p, path))
    if not found:
        raise DataError(f"{path} holds no {', '.join(SUFFIXES)} files; give a directory with data, or a file")
    return found


def _hidden(path: Path, above: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(above).parts)


def read_path(path: Path, limit: int | None = None) -> Iterator[Placed]:
    """As :func:`read_file`, and all files of a directory one after another."""
    return islice((placed for file in files_of(path) for placed in read_file(file)), limit)


def peek(rows: Iterator[Placed], number: int = 100) -> tuple[list[Placed], Iterator[Placed]]:
    """(the first rows, all rows): by what columns a source has, where some rows lack some."""
    first = list(islice(rows, number))
    return first, chain(first, rows)


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
        rows = parse_json(text, once)
    except BadJson as error:
        if error.reason == "Extra data" and text.lstrip().startswith("{"):  # JSON lines under the other suffix
            yield from _read_lines(path)
            return
        raise DataError(f"{path}{f', line {error.line}' if error.line else ''}: {error}; mend the file") from None
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a JSON {type(rows).__name__}; a list of objects is needed, one a problem")
    for number, row in enumerate(rows, start=1):
        place = f"{path}, row {number}"
        yield place, _as_row(row, place)


def _read_parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        # One row group at a time, and few rows of it (a row with three R1 traces has some 50 kB): left to itself,
        # Arrow reads ahead until the whole file is in memory.
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            number = 0
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=256, row_groups=[group], use_threads=False):
                    if number == 0 and (twice := _named_twice(batch.schema.names)):
                        raise DataError(f"{path} has two columns called '{twice}'; rename one")
                    for row in shortest_decimals(batch.to_pylist(), batch.schema):
                        number += 1
                        yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no readable Parquet file (truncated?): {one_line(error)}") from None
    except OSError as error:  # Arrow reports a damaged page as OSError without errno
        raise DataError(f"{path} cannot be read: {error.strerror or one_line(error)}") from None


def _named_twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def shortest_decimals(rows: list[dict[str, Any]], schema: Any) -> list[dict[str, Any]]:
    """Rows of an Arrow schema whose numbers of half and single precision are the shortest decimals of their own type.

    Python would widen a single 0.1 to 0.10000000149011612, and that would be the right answer.
    """
    found = {field.name: narrow for field in schema if (narrow := _narrower(field.type)) is not None}
    if not found:
        return rows
    return [{name: found[name](value) if name in found else value for name, value in row.items()} for row in rows]


def _narrower(kind: Any) -> Callable[[Any], Any] | None:
    """What narrows the values of an Arrow type; None where nothing in it is narrow."""
    import numpy
    import pyarrow.types as types

    if types.is_float16(kind) or types.is_float32(kind):
        narrow = numpy.float16 if types.is_float16(kind) else numpy.float32
        return lambda value: None if value is None else float(str(narrow(value)))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _narrower(kind.value_type)
        return inner and (lambda value: None if value is None else [inner(item) for item in value])
    if types.is_struct(kind):
        inside = {field.name: found for field in kind if (found := _narrower(field.type)) is not None}
        return (
            (lambda value: value and {k: inside[k](v) if k in inside else v for k, v in value.items()})
            if inside
            else None
        )
    return None


def read_dataset(source: DataSource, streaming: bool = False) -> Iterator[Placed]:
    """Yield (place, row) of a Hugging Face dataset, at a fixed revision if the source names one.

    With `streaming`, rows come over the network as they are read, and nothing is stored.

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
        stream = {"streaming": True} if streaming else {}
        rows = datasets.load_dataset(
            source.dataset, source.dataset_config, split=source.split, revision=source.dataset_revision, **stream
        )
        schema = getattr(getattr(rows, "features", None), "arrow_schema", None)
        for number, row in enumerate(islice(rows, source.limit), start=1):
            (whole,) = [dict(row)] if schema is None else shortest_decimals([dict(row)], schema)
            yield f"{name}, split {source.split}, row {number}", whole
    except Exception as error:  # the hub's clients raise dozens of types, none of them ours to tell apart
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise DataError(f"{name}, split {source.split} cannot be loaded. {cause} {mend}") from None


def dataset_commit(source: DataSource) -> str:
    """The commit that a hub dataset's revision (its newest, where none is given) stands for now.

    A whole commit hash is taken as it is, without asking. Raises DataError if the hub does not answer.
    """
    revision = source.dataset_revision
    if revision is not None and len(revision) == 40 and set(revision) <= set("0123456789abcdef"):
        return revision
    try:
        from huggingface_hub import HfApi

        return str(HfApi().dataset_info(str(source.dataset), revision=revision).sha)
    except Exception as error:  # as above
        raise DataError(
            f"dataset {source.dataset}: the hub does not say which commit {revision or 'its newest'} is. "
            f"{type(error).__name__}: {one_line(error)} Without the hub: put its files on this machine and give `path`"
        ) from None


def pinned(source: DataSource, notes: Notes) -> tuple[DataSource, str | None]:
    """(the source at the commit that its revision stands for now, that commit); (source, None) where nobody says it.

    notes: gets "unpinned" for a source of the hub whose settings name no revision.
    """
    if source.path is not None or source.dataset is None:
        return source, None
    try:
        commit = dataset_commit(source)
    except DataError:  # without the hub a set may lie in the cache of `datasets`
        commit = None
    if source.dataset_revision is None:
        notes.add("unpinned", commit or "the hub does not say which")
    return source if commit is None else source.model_copy(update={"dataset_revision": commit}), commit


def _parse(line: str, place: str) -> Any:
    try:
        return parse_json(line, once)
    except BadJson as error:
        raise DataError(f"{place}: {error}; mend the line") from None


def _as_row(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place}: a JSON object is needed, this is a {type(row).__name__}")
    return row
