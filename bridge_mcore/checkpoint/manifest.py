"""The files of a run's checkpoint: sizes and checksums, complete checkpoints of a directory, and pruning."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, TypedDict

from bridge_mcore.config.json_file import read_json_object, shown
from bridge_mcore.config.model_files import lies_inside
from bridge_mcore.errors import CheckpointError

FORMAT = 2
MANIFEST = "checkpoint.json"
_MOST_BYTES = 256 << 20  # of a manifest: one of ten thousand ranks has a few megabytes


class FileEntry(TypedDict):
    """What the manifest says of a file."""

    bytes: int
    crc32: int


def checksum(path: Path, cold: bool = False) -> int:
    """CRC-32 of a file. `cold`: drop it from the page cache before, so that the disk answers, where the system can."""
    value = 0
    with open(path, "rb") as file:
        if cold and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := file.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


def write_file(path: Path, content: bytes) -> FileEntry:
    """Write a small file to disk. Returns its entry."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(bytes=len(content), crc32=zlib.crc32(content))


def _own_checksum(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in manifest.items() if k != "crc32"}, sort_keys=True).encode())


def write_manifest(directory: Path, step: int, layout: dict[str, Any], files: dict[str, FileEntry]) -> None:
    """Write the manifest: the last file of a checkpoint."""
    manifest: dict[str, Any] = {"format": FORMAT, "step": step, "layout": layout, "files": files}
    manifest["crc32"] = _own_checksum(manifest)
    write_file(directory / MANIFEST, json.dumps(manifest, indent=1).encode())


def read_manifest(directory: Path) -> dict[str, Any]:
    """Manifest of a checkpoint whose files are all there in full length. CheckpointError says what is not."""
    path = directory / MANIFEST
    try:
        manifest = read_json_object(path, _MOST_BYTES)
    except CheckpointError as error:
        raise CheckpointError(f"{directory} is no complete checkpoint: {error}") from error
    if manifest.get("format") != FORMAT and isinstance(manifest.get("format"), int) and "crc32" not in manifest:
        raise CheckpointError(f"{directory} has checkpoint format {manifest['format']}, this version reads {FORMAT}")
    if manifest.get("crc32") != _own_checksum(manifest):
        raise CheckpointError(f"{path} is corrupt: its checksum is not the one recorded")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{directory} has checkpoint format {shown(manifest.get('format'))}, this version reads {FORMAT}"
        )
    _check_types(path, manifest)
    for name, entry in manifest["files"].items():
        file = directory / name
        if not lies_inside(name):
            raise CheckpointError(f"{path} names a file outside its directory: {shown(name)}")
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise CheckpointError(f"{file} is missing or truncated")
    return manifest


def _check_types(path: Path, manifest: dict[str, Any]) -> None:
    """Raise CheckpointError for a manifest that `write_manifest` does not write; its checksum is no secret."""
    for key, kind in (("step", int), ("layout", dict), ("files", dict)):
        if type(manifest.get(key)) is not kind:
            raise CheckpointError(f"{path} is no manifest of a checkpoint: {key} is {shown(manifest.get(key))}")
    for name, entry in manifest["files"].items():
        if not isinstance(entry, dict) or not all(type(entry.get(key)) is int for key in ("bytes", "crc32")):
            raise CheckpointError(f"{path} is no manifest of a checkpoint: files.{shown(name)} is {shown(entry)}")


def verify_files(directory: Path, manifest: dict[str, Any], part: int = 0, parts: int = 1) -> None:
    """Compare the checksums of every `parts`-th file, from number `part` on. CheckpointError names a corrupt one."""
    # The ranks' files first and in their order, so that a rank that resumes in its old place checks what it will load.
    names = sorted(manifest["files"], key=lambda name: (not name.endswith(".distcp"), len(name), name))
    for name in names[part::parts]:
        try:
            intact = checksum(directory / name) == manifest["files"][name]["crc32"]
        except OSError as error:
            raise CheckpointError(f"{directory / name} cannot be read: {error}") from error
        if not intact:
            raise CheckpointError(f"{directory / name} is corrupt: its checksum is not the one recorded")


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoint directories of a run, newest first; unfinished ones have other names and are not among them."""
    return sorted((p for p in Path(directory).glob("step_*") if p.is_dir()), reverse=True)


def prune(directory: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints. Call it after a new one is complete and verified."""
    complete = []
    for path in list_checkpoints(directory):
        try:
            read_manifest(path)
            complete.append(path)
        except CheckpointError:
            continue  # not ours to delete: someone may want to look at it
    for path in complete[keep:]:
        # Under another name first: a removal that is cut short must not look like a damaged checkpoint.
        doomed = path.with_name(f".{path.name}.pruned")
        path.rename(doomed)
        shutil.rmtree(doomed)
