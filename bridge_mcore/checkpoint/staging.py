"""Write a directory of large files in parallel: whole or not at all, and going on where a killed writer stopped.

Files are written next to the target, in `.NAME.incomplete`; each is noted in a journal once it is on disk. A second
run of the same job keeps those and writes the rest. The directory gets its name when everything is there.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_mcore.checkpoint import atomic
from bridge_mcore.config.json_file import parse_json
from bridge_mcore.errors import CheckpointError
from bridge_mcore.monitoring.text import byte_size
from bridge_mcore.platform.locks import FileLock

_JOURNAL = ".journal"
_SLACK = 64 << 20  # free bytes beyond what the files need: indices, configuration, the file system's own
Tick = Callable[[int], None]
Show = Callable[[Iterable[int], int, str], Iterable[int]]


@dataclass(frozen=True)
class Output:
    """A file to write. `write(path, tick)` calls `tick(bytes)` as it goes; it returns, as JSON, what `finish` wants."""

    name: str
    nbytes: int
    write: Callable[[Path, Tick], Any]


class _Stopped(Exception):
    """Another file has failed, or the user has had enough."""


def quiet(steps: Iterable[int], total: int, text: str) -> Iterable[int]:
    """A `Show` that shows nothing. As `monitoring.progress.track`."""
    return steps


def write_directory(
    target: Path,
    job: Mapping[str, Any],
    outputs: Sequence[Output],
    finish: Callable[[Path, dict[str, Any]], None],
    *,
    workers: int,
    replace: Callable[[Path], bool] | None = None,
    show: Show = quiet,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Write `outputs` by `workers` threads, then `finish(directory, results by file name)`, then name it `target`.

    Args:
        job: what is done, JSON: files of an unfinished directory are kept only if it says the same.
        replace: whether a directory that stands at `target` may be replaced; None: nothing may stand there.
    Raises:
        CheckpointError: if something stands at the target, or the disk is too small.
        LockHeld: if another process writes it.
        TrainingError: for a disk that fills up all the same. Nothing is left behind then; what stood there stays.
    """
    target = Path(target).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Held to the end: whoever comes meanwhile must neither put an old directory back nor clean up after this writer.
    with FileLock(target.with_name(f".{target.name}.lock"), str(target), say):
        _put_back(target)
        occupied = target.exists() and not (target.is_dir() and not any(target.iterdir()))
        if occupied and (not target.is_dir() or replace is None or not replace(target)):
            raise CheckpointError(
                f"{target} exists already; choose another name, or give --force to replace a checkpoint that lies there"
            )
        temporary = atomic.unfinished(target)
        temporary.mkdir(exist_ok=True)
        results = _recall(temporary, job, outputs, say)
        left = [o for o in outputs if o.name not in results]
        _check_space(target, temporary, sum(o.nbytes for o in left), keep=bool(results))
        try:
            with open(temporary / _JOURNAL, "a") as journal:
                results |= _write_all(temporary, left, journal, workers, show)
            finish(temporary, results)
            (temporary / _JOURNAL).unlink()
            atomic.commit(temporary, target)
        except Exception as error:
            atomic.agree(error, target, temporary)


def _put_back(target: Path) -> None:
    """Undo a replacement that was killed between its two renames."""
    old = target.with_name(f".{target.name}.replaced")
    if old.exists():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)


def _recall(
    temporary: Path, job: Mapping[str, Any], outputs: Sequence[Output], say: Callable[[str], None]
) -> dict[str, Any]:
    """Results of the files that an earlier run of the same job has finished; everything else there is removed."""
    lines = []
    try:
        for line in (temporary / _JOURNAL).read_text().splitlines():
            lines.append(parse_json(line))
    except (OSError, ValueError):
        pass  # none yet, or its last line is torn
    wanted = {o.name for o in outputs}
    done: dict[str, Any] = {}
    same = bool(lines) and lines[0] == json.loads(json.dumps(job))
    for entry in lines[1:] if same else []:
        name = entry.get("name") if isinstance(entry, dict) else None
        path = temporary / str(name)
        if name in wanted and path.is_file() and path.stat().st_size == entry.get("size"):
            done[name] = entry.get("result")
    for path in temporary.iterdir():
        if path.name not in done:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    with open(temporary / _JOURNAL, "w") as journal:
        _note(journal, job)
        for name, result in done.items():
            _note(journal, {"name": name, "size": (temporary / name).stat().st_size, "result": result})
    if done:
        say(f"· going on where an earlier run stopped: {len(done)} of {len(outputs)} files are there")
    elif lines and not same:
        say("· an earlier run, with another source or other options, was left unfinished: starting anew")
    return done


def _note(journal: Any, entry: Any) -> None:
    journal.write(json.dumps(entry) + "\n")
    journal.flush()
    os.fsync(journal.fileno())


def _check_space(target: Path, temporary: Path, needed: int, keep: bool) -> None:
    """Raise CheckpointError if the disk is too small; what an earlier run has finished is kept for when it is not."""
    free = shutil.disk_usage(temporary).free
    if needed + _SLACK > free:
        if not keep:
            shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{target} needs {needed / 2**30:.1f} GiB, but its disk has {free / 2**30:.1f} GiB free; "
            "free some, or choose another disk"
        )


def _write_all(temporary: Path, outputs: list[Output], journal: Any, workers: int, show: Show) -> dict[str, Any]:
    ticks: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    stop, lock = threading.Event(), threading.Lock()

    def tick(count: int) -> None:
        if stop.is_set():
            raise _Stopped
        ticks.put(count)

    def task(output: Output) -> Any:
        part = temporary / f"{output.name}.part"
        tick(0)
        result = output.write(part, tick)
        part.rename(temporary / output.name)
        with lock:
            _note(journal, {"name": output.name, "size": (temporary / output.name).stat().st_size, "result": result})
        return result

    def ended(future: Future) -> None:
        if not future.cancelled() and future.exception() is not None:
            stop.set()
        ticks.put(None)

    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(outputs)))) as pool:
        futures = [pool.submit(task, output) for output in outputs]
        for future in futures:
            future.add_done_callback(ended)
        total = sum(o.nbytes for o in outputs)
        try:
            for _ in show(_percents(ticks, len(futures), total), 100, f"writing {byte_size(total)}, percent done"):
                pass
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    failures = [e for f in futures if (e := f.exception()) is not None]
    for failure in failures:
        if not isinstance(failure, _Stopped):
            raise failure
    return {o.name: f.result() for o, f in zip(outputs, futures, strict=True)}


def _percents(ticks: queue.SimpleQueue[int | None], files: int, total: int) -> Iterator[int]:
    """1 … 100 as the bytes are written; ends when all files have, well or not."""
    done = percent = 0
    while files:
        count = ticks.get()
        files -= count is None
        done += count or 0
        while percent < min(100 * done // max(total, 1), 99):
            percent += 1
            yield percent
    while percent < 100:
        percent += 1
        yield percent
