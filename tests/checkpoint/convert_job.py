"""Conversions in processes that are killed, and in one whose memory is watched.

python -m tests.checkpoint.convert_job kill SOURCE NEW_SOURCE DIRECTORY SEED   (prints what the kills left)
python -m tests.checkpoint.convert_job memory SMALL SOURCE DIRECTORY   (prints MiB that a conversion added)
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

from bridge_mcore.platform.device import setup_device

setup_device("cpu")

from bridge_mcore.checkpoint.convert import Options, open_hf, open_megatron, to_hf, to_megatron  # noqa: E402
from bridge_mcore.checkpoint.verify import compare_tensors  # noqa: E402
from bridge_mcore.config.schema import Parallel  # noqa: E402


def convert(source: Path, target: Path, say: object = print) -> None:
    options = Options(workers=2, force=True, say=say)  # type: ignore[arg-type]
    to_megatron(open_hf(source), target, Parallel(tensor=2, pipeline=3), None, 1, options)


def in_child(source: Path, target: Path, moment: int | None) -> int:
    """Convert in a process of its own, killed at its `moment`-th touch of a file (None: not). How many there were."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(1)
        os.open(os.devnull, os.O_WRONLY)
        count = 0

        def touched(event: str, _: object = None) -> None:
            nonlocal count
            if event in ("open", "os.rename", "os.truncate", "os.mkdir", "os.remove", "os.rmdir", "fsync"):
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        fsync = os.fsync
        os.fsync = lambda fd: (touched("fsync"), fsync(fd))[1]  # type: ignore[assignment]
        sys.addaudithook(touched)
        convert(source, target)
        os.write(writer, str(count).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    assert moment is not None or status == 0
    with open(reader, "rb") as file:
        return int(file.read() or 0)


def kill(source: Path, new: Path, directory: Path, seed: int) -> None:
    """An old checkpoint of `source` is replaced by one of `new`, and the process killed at random moments."""
    draw = random.Random(seed)
    target = directory / "m"
    outcomes: Counter[str] = Counter()
    convert(source, target, lambda _: None)
    moments = in_child(new, target, None)
    models = {"old": open_hf(source), "new": open_hf(new)}
    for _ in range(10):
        convert(source, target, lambda _: None)
        in_child(new, target, draw.randint(1, moments))
        if not target.exists():  # between two renames: the next command puts the old one back
            outcomes["aside"] += 1
            assert (directory / ".m.replaced").exists()
        else:
            found = open_megatron(target)
            name = "model.norm.weight"
            kind = next(
                k
                for k, m in models.items()
                if bool((m.source.block(name, (0, 8)) == found.source.block(name, (0, 8))).all())
            )
            compare_tensors(models[kind], found)
            outcomes[kind] += 1
        unfinished = directory / ".m.incomplete"
        kept = {p.name: p.stat().st_mtime_ns for p in unfinished.glob("*.distcp")} if unfinished.exists() else {}
        said: list[str] = []
        convert(new, target, said.append)
        compare_tensors(models["new"], open_megatron(target))
        if any("going on" in line for line in said):
            outcomes["continued"] += 1
            assert any((target / n).stat().st_mtime_ns == t for n, t in kept.items())
        assert [p.name for p in directory.iterdir()] == ["m"], "nothing is left behind"
    print(dict(outcomes))


def peak_mib() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def there_and_back(source: Path, directory: Path) -> None:
    options = Options(workers=2)
    to_megatron(open_hf(source), directory / "m", Parallel(tensor=2, pipeline=2), None, 1, options)
    to_hf(open_megatron(directory / "m"), directory / "back", None, options)
    compare_tensors(open_hf(source), open_hf(directory / "back"))


def memory(small: Path, source: Path, directory: Path) -> None:
    """What a conversion there and back adds to the peak memory of a process that has done one of a small model."""
    there_and_back(small, directory / "warm")
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        gc.collect()
        file.write("5")
    before = peak_mib()
    there_and_back(source, directory)
    print(f"{peak_mib() - before:.1f}")


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
    else:
        memory(*(Path(argument) for argument in sys.argv[2:]))
