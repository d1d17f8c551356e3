"""What a directory holds, as far as its headers and metadata say: nothing of the tensors is read."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from bridge_mcore.checkpoint.convert import RECORD, Model, latest_iteration, open_hf, open_megatron
from bridge_mcore.checkpoint.megatron import TensorStore
from bridge_mcore.checkpoint.peft import adapter_fields, look_at_adapter
from bridge_mcore.checkpoint.run_adapter import find_run, has_adapter, newest_checkpoint, run_adapter
from bridge_mcore.checkpoint.safetensors_dir import SafetensorsDirectory
from bridge_mcore.checkpoint.sharded import METADATA
from bridge_mcore.config.json_file import read_json_object, shown
from bridge_mcore.config.model_files import has_tokenizer
from bridge_mcore.errors import BridgeError, CheckpointError
from bridge_mcore.model.families import find_family
from bridge_mcore.monitoring.text import byte_size


@dataclass
class Report:
    """What `inspect` prints. `problem`: why it cannot be converted, if it cannot."""

    kind: str
    path: str
    facts: dict[str, Any] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    problem: str | None = None


def inspect(path: Path, config: Path | None = None) -> Report:
    """Look at an HF checkpoint, a PEFT adapter, a Megatron checkpoint, or a run or its checkpoint.

    Raises CheckpointError if it is none of them.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file; give the directory that holds it" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}")
    path = newest_checkpoint(path)
    if (path / METADATA).is_file() or (path / "latest_checkpointed_iteration.txt").is_file():
        return _megatron(path, config)
    if (path / "adapter_config.json").is_file():
        return _adapter(path, config)
    if (path / "config.json").is_file():
        return _hf(path)
    raise CheckpointError(
        f"{path} is no checkpoint that is known here: it has neither config.json, adapter_config.json nor {METADATA}"
    )


def _hf(path: Path) -> Report:
    report = Report("Hugging Face checkpoint", str(path))
    try:
        model = open_hf(path)
    except BridgeError as error:
        report.problem = str(error)
        return report
    source = model.source
    assert isinstance(source, SafetensorsDirectory)
    _describe(report, model)
    report.facts["files"] = _files(source.files())
    report.commands = [
        f"bridge-mcore convert hf-to-mcore {path} DST",
        f"bridge-mcore convert merge-adapter {path} ADAPTER DST",
        *([f"bridge-mcore train CONFIG model.path={path}"] if has_tokenizer(path) else []),
    ]
    return report


def _megatron(path: Path, config: Path | None) -> Report:
    store_path = path
    report = Report("Megatron distributed checkpoint", str(path))
    try:
        store_path = latest_iteration(path)
        model = open_megatron(path, config)
        _describe(report, model)
        if has_adapter(store_path):
            run_adapter(store_path, model.shape)
    except BridgeError as error:
        report.problem = str(error)
    if (store_path / METADATA).is_file():
        store = TensorStore(store_path)
        report.facts.setdefault("dtypes", _dtypes({k: (store.dtype(k), store.shape(k)) for k in store.tensors}))
        report.facts["tensors stored"] = len(store.tensors)
        report.facts["files"] = _files(store.files())
        try:
            run = find_run(store_path)
        except BridgeError as error:
            report.problem = report.problem or str(error)
        else:
            if run is not None:
                report.kind = "checkpoint of a run of bridge-mcore"
                report.facts["run"] = str(run.directory)
        prefixes = Counter(k.split("/")[0] for k in store.tensors if "/" in k)
        if prefixes:
            report.facts["holds"] = ", ".join(f"{name} ({count} tensors)" for name, count in prefixes.items())
        record = store_path / RECORD
        if record.is_file():
            report.facts["written for"] = _layout(record)
        if report.problem is None:
            report.commands = [f"bridge-mcore convert mcore-to-hf {path} DST"]
            if "w" in prefixes:
                report.commands += [
                    f"bridge-mcore convert mcore-to-hf {path} DST --merged",
                    f"bridge-mcore convert extract-adapter {path} DST",
                ]
    report.facts["layout"] = "any: a distributed checkpoint is loaded in whatever layout is asked for"
    return report


def _adapter(path: Path, base: Path | None) -> Report:
    """An adapter, judged by what merging and training check; `base`: directory of its base model, if that is known."""
    report = Report("PEFT adapter", str(path))
    try:
        config, special = adapter_fields(path)
        source = SafetensorsDirectory(path, "adapter_model")
    except BridgeError as error:
        report.problem = str(error)
        return report
    named = config.get("base_model_name_or_path")
    if base is None and isinstance(named, str) and os.path.isfile(os.path.join(named, "config.json")):
        base = Path(named)
    sizes = {name: (source.dtype(name), source.shape(name)) for name in source.names()}
    targets = config.get("target_modules")
    report.facts = {
        "type": _plain(config.get("peft_type")),
        "rank": _plain(config.get("r")),
        "alpha": _plain(config.get("lora_alpha")),
        "scale": "alpha / √rank (rslora)" if config.get("use_rslora") is True else "alpha / rank",
        "targets": ", ".join(str(_plain(t)) for t in targets[:20]) if isinstance(targets, list) else _plain(targets),
        "base model": _plain(named),
        "parameters": sum(prod(shape) for _, shape in sizes.values()),
        "dtypes": _dtypes(sizes),
        "files": _files(source.files()),
        "checked against": "itself: its base model is not here (--config DIR)" if base is None else str(base),
    }
    if special:
        report.facts["special"] = ", ".join(f"{shown(key)[1:-1]}={shown(config[key])}" for key in special[:8])
    try:
        look_at_adapter(path, None if base is None else find_family(base)[1])
    except BridgeError as error:
        report.problem = str(error)
        return report
    report.commands = [
        f"bridge-mcore convert merge-adapter BASE {path} DST",
        f"bridge-mcore convert hf-to-mcore BASE DST --adapter {path}",
        f"bridge-mcore train CONFIG adapter.path={path}",
    ]
    return report


def _layout(record: Path) -> str:
    """What a conversion noted of the layout that it wrote for."""
    try:
        layout = read_json_object(record).get("layout", {})
    except CheckpointError:
        layout = None
    if not isinstance(layout, dict):
        return f"not known: {record.name} is damaged"
    return ", ".join(f"{_plain(name)} {_plain(size)}" for name, size in layout.items())


def _plain(value: Any) -> Any:
    """A value of someone else's file as it is if it is plain, and in short otherwise."""
    if isinstance(value, str):
        return value if value.isprintable() and len(value) <= 200 else shown(value)
    fits = value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return value if fits else shown(value)


def _describe(report: Report, model: Model) -> None:
    shape = model.shape
    sizes = {name: (model.source.dtype(name), model.source.shape(name)) for name in model.names()}
    report.facts |= {
        "family": f"{model.family.name} ({model.family.architecture})",
        "parameters": sum(prod(size) for _, size in sizes.values()),
        "dtypes": _dtypes(sizes),
        "layers": shape.layers,
        "hidden size": shape.hidden_size,
        "heads": f"{shape.heads}, {shape.kv_heads} for keys and values, of {shape.head_dim}",
        "MLP": f"{shape.experts} experts of {shape.mlp_width}" if shape.experts else shape.mlp_width,
        "vocabulary": f"{shape.vocab_size}, {'tied' if shape.tied else 'not tied'} to the output",
        "context": shape.max_positions,
    }
    if model.remarks:
        report.facts["remarks"] = "; ".join(model.remarks)
    if model.left_out:
        report.facts["left out"] = ", ".join(model.left_out)


def _dtypes(sizes: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> str:
    counts: Counter[str] = Counter()
    for dtype, shape in sizes.values():
        counts[str(dtype).removeprefix("torch.")] += prod(shape)
    total = max(sum(counts.values()), 1)
    return ", ".join(name if n == total else f"{name} {100 * n / total:.3g} %" for name, n in counts.most_common())


def _files(files: list[Path]) -> str:
    return f"{len(files)}, {byte_size(sum(p.stat().st_size for p in files))}"
