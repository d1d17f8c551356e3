"""Directories that nobody should send: models, tokenizers, adapters, checkpoints and evaluations, each with one thing
wrong. Every command ends in one message and exit code 2, or works; no pickle is opened.

The generator knows what it made: `nonsense` must be refused, of the rest only the ending is judged.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridge_mcore.checkpoint.convert import Options, open_hf, to_megatron
from bridge_mcore.checkpoint.manifest import MANIFEST, read_manifest, write_file, write_manifest
from bridge_mcore.checkpoint.peft import write_adapter
from bridge_mcore.checkpoint.trained import merge_states, parse_state
from bridge_mcore.config.schema import Parallel
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.tokenizer import task_tokenizer
from bridge_mcore.errors import CheckpointError
from bridge_mcore.evaluation.records import record_of, write_records
from bridge_mcore.model.families import find_family
from bridge_mcore.model.lora import LoRAShape, projection_sizes
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict
from tests.models import save_tiny
from tests.support.fuzz import run_forked
from tests.support.hostile_files import STRANGE, changed, check_ending, evil_pickle, places, strange_for, unreadable

IMPORTS = (
    "bridge_mcore.checkpoint.inspect", "bridge_mcore.rollout.command", "bridge_mcore.evaluation.command",
    "transformers.models.auto.tokenization_auto", "transformers.models.qwen2.tokenization_qwen2",
    "transformers.models.qwen2.configuration_qwen2", "bridge_mcore.platform.device",
)  # fmt: skip
SECONDS = 90
#: Fields of config.json that count or name something: of another kind they mean nothing.
FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size", "rms_norm_eps",
    "max_position_embeddings", "model_type", "architectures", "tie_word_embeddings",
)  # fmt: skip
Draw = random.Random


class Good:
    """One of each kind, right in every way."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.trace = directory, directory / "unpickled"
        self.hf, self.adapter, self.megatron, self.evaluation = (directory / n for n in ("hf", "a", "m", "e"))
        tokenizer = task_tokenizer("running_sums")
        save_tiny("qwen2", self.hf, vocab=len(tokenizer))
        tokenizer.save_pretrained(self.hf)
        (self.hf / "generation_config.json").write_text('{"eos_token_id": [1]}')
        shape = find_family(self.hf)[1]
        n_in, n_out = projection_sizes(shape)["q_proj"]
        stem = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        tensors = {stem.format(i, "A"): torch.randn(2, n_in) for i in range(2)}
        tensors |= {stem.format(i, "B"): torch.randn(n_out, 2) for i in range(2)}
        write_adapter(self.adapter, tensors, LoRAShape(2, 4.0, ("q_proj",)), None)
        to_megatron(open_hf(self.hf), self.megatron, Parallel(), None, 1, Options())
        problem = Problem("0" * 16, "q", "5", None, "set")
        record = record_of(
            "set", problem, Attempt("5", "\\boxed{5}", "q", problem.id, 0, 3, True), Verdict("correct", "")
        )
        (self.evaluation / "records").mkdir(parents=True)
        write_records(self.evaluation / "records" / "set.jsonl", [record])
        settings = {"benchmarks": {"set": {"samples": 1, "problems": {problem.id: "math"}}}}
        (self.evaluation / "settings.json").write_text(json.dumps(settings))
        self.count = 0

    def commands(self, kind: str, spoilt: Path) -> list[list[str]]:
        """What is done with a directory of a kind."""
        self.count += 1
        out = str(self.directory / f"out{self.count}")
        return {
            "hf": [["convert", "inspect", str(spoilt)], ["convert", "hf-to-mcore", str(spoilt), out],
                   ["generate", str(spoilt), "--prompt", "Q:a1A:", "--template", "plain", "--max-new-tokens", "2"]],
            "a": [["convert", "inspect", str(spoilt)], ["convert", "merge-adapter", str(self.hf), str(spoilt), out]],
            "m": [["convert", "inspect", str(spoilt)], ["convert", "mcore-to-hf", str(spoilt), out]],
            "e": [["scores", str(spoilt), "--workers", "1"]],
        }[kind]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory, world) -> Good:
    return Good(tmp_path_factory.mktemp("fuzz"))


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def reheaded(path: Path, change: Callable[[dict], dict]) -> None:
    """A safetensors file with another header before the same bytes."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(change(json.loads(raw[8 : 8 + length]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


# --- what is done to a directory; each returns whether the result is nonsense ---


def a_field(directory: Path, draw: Draw) -> bool:
    field = draw.choice(FIELDS)

    def change(config: dict) -> dict:
        return {**config, field: strange_for(config[field], draw)}

    rewrite(directory / "config.json", change)
    return True


def a_size(directory: Path, draw: Draw) -> bool:
    """A size that is a number, and no model's or not this one's."""
    field = draw.choice(["hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers", "head_dim"])
    value = draw.choice([-1, 0, 3, 1 << 20, 1 << 24, 10**30, 1e308, 2.5])
    rewrite(directory / "config.json", lambda config: {**config, field: value})
    return True


def a_bomb(directory: Path, draw: Draw) -> bool:
    """A field by which a little file asks for much."""
    more = draw.choice([
        {"num_hidden_layers": 10**9}, {"num_hidden_layers": 9_999}, {"num_key_value_heads": 10**9},
        {"layer_types": ["full_attention"] * 200_000}, {"rope_theta": True}, {"rope_theta": "10000"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e300}}, {"rope_parameters": 5},
        {"quantization_config": {"quant_method": "x"}}, {"pruned_heads": {"0": [1]}}, {"max_position_embeddings": 1e9},
    ])  # fmt: skip
    rewrite(directory / "config.json", lambda config: {**config, **more})
    return True


def any_field(directory: Path, draw: Draw) -> bool:
    path = directory / draw.choice(["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(changed(tree, draw.choice(list(places(tree))), draw.choice(STRANGE))))
    return False


def no_json(directory: Path, draw: Draw) -> bool:
    names = ["config.json", "generation_config.json", "tokenizer.json"]
    (directory / draw.choice(names)).write_bytes(unreadable(draw))
    return True


def end_tokens(directory: Path, draw: Draw) -> bool:
    token = draw.choice([-1, 10**14, "abc", [[1]], [1.5], True, {"a": 1}, [1, 10**9], 137 * 8])
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": token}))
    return True


def no_file(directory: Path, draw: Draw) -> bool:
    """Something else than a file under a file's name."""
    path = directory / draw.choice(["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
    path.unlink()
    kind = draw.choice(["directory", "pipe", "loop", "device"])
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    # A tokenizer that is a loop is none, which is said; a missing generation_config.json is no fault.
    return not (kind in ("loop", "directory") and path.name in ("tokenizer.json", "generation_config.json"))


def a_pipe_beside(directory: Path, draw: Draw) -> bool:
    path = directory / draw.choice(["special_tokens_map.json", "added_tokens.json", "chat_template.jinja"])
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return True


def weights(directory: Path, draw: Draw) -> bool:
    """Weights that are cut, renamed or lacking."""
    path = next(directory.glob("*model.safetensors"))
    raw = path.read_bytes()
    kind = draw.choice(["cut", "length", "pickle", "lacking", "more", "bin"])
    if kind == "cut":
        path.write_bytes(raw[: draw.randrange(len(raw))])
    elif kind == "length":
        path.write_bytes(struct.pack("<Q", draw.choice([0, 1 << 40, (1 << 64) - 1, draw.randrange(1, 400)])) + raw[8:])
    elif kind == "pickle":
        path.write_bytes(evil_pickle(directory.parent / "unpickled", draw))
    elif kind == "bin":
        path.rename(directory / "pytorch_model.bin")
    else:
        tensors = load_file(path)
        name = draw.choice(sorted(tensors))
        if kind == "lacking":
            del tensors[name]
        else:
            tensors["evil.weight"] = torch.zeros(1)
        save_file(tensors, path)
    return True


def not_finite(directory: Path, draw: Draw) -> bool:
    path = next(directory.glob("*model.safetensors"))
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    tensors[name].view(-1)[draw.randrange(tensors[name].numel())] = draw.choice([torch.nan, torch.inf])
    save_file(tensors, path)
    return True


def header(directory: Path, draw: Draw) -> bool:
    def change(tree: dict) -> dict:
        place = draw.choice([p for p in places(tree) if p[0] != "__metadata__"])
        old: Any = tree
        for key in place:
            old = old[key]
        return changed(tree, place, strange_for(old, draw))

    reheaded(next(directory.glob("*model.safetensors")), change)
    return True


def flipped(directory: Path, draw: Draw) -> bool:
    """A few bits of any file: noticed, or another model."""
    path = draw.choice([p for p in sorted(directory.rglob("*")) if p.is_file() and p.stat().st_size])
    content = bytearray(path.read_bytes())
    for _ in range(draw.randrange(1, 4)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return False


def index(directory: Path, draw: Draw) -> bool:
    """An index that leads elsewhere, or nowhere."""
    names = list(load_file(directory / "model.safetensors"))
    (directory / "model.safetensors").rename(directory / "part.safetensors")
    where = ["../hf/part.safetensors", "/etc/passwd", "..", "", "part.bin", "none.safetensors", "a\0b.safetensors",
             "x" * 5000 + ".safetensors", "\ud800.safetensors", 5, None, ["part.safetensors"]]  # fmt: skip
    content = draw.choice([
        {"weight_map": dict.fromkeys(names, draw.choice(where))}, {"weight_map": [1]}, {}, [], {"weight_map": {}},
        {"weight_map": dict.fromkeys(names[1:], "part.safetensors")},
        {"weight_map": dict.fromkeys([*names, "more"], "part.safetensors")},
    ])  # fmt: skip
    (directory / "model.safetensors.index.json").write_text(json.dumps(content))
    return True


def adapter_field(directory: Path, draw: Draw) -> bool:
    field = draw.choice(["r", "lora_alpha", "peft_type", "target_modules", "use_dora", "rank_pattern"])
    odd = {"use_dora": [True, 1, "x"], "rank_pattern": [{"q_proj": 4}, ["x"], 5]}

    def change(config: dict) -> dict:
        value = draw.choice(odd[field]) if field in odd else strange_for(config[field], draw)
        return {**config, field: value}

    rewrite(directory / "adapter_config.json", change)
    return True


def adapter_json(directory: Path, draw: Draw) -> bool:
    (directory / "adapter_config.json").write_bytes(unreadable(draw))
    return True


def metadata(directory: Path, draw: Draw) -> bool:
    """A pickle that would run something, or none."""
    path = directory / ".metadata"
    content = draw.choice([
        lambda: evil_pickle(directory.parent / "unpickled", draw), lambda: b"garbage", lambda: b"",
        lambda: b"\x80\x04\x8c\x05torch\x8c\x12serialization.load\x93.", lambda: b"(lp0\n" * 100_000,
        lambda: path.read_bytes()[: draw.randrange(path.stat().st_size - 1)], lambda: b"\x80\x04}.",
    ])()  # fmt: skip
    path.write_bytes(content)
    return True


def pieces_cut(directory: Path, draw: Draw) -> bool:
    path = directory / "__0_0.distcp"
    os.truncate(path, draw.randrange(path.stat().st_size // 2))
    return True


def config_of_megatron(directory: Path, draw: Draw) -> bool:
    return draw.choice([a_field, a_size, no_json, end_tokens])(directory / "hf", draw)


def settings(directory: Path, draw: Draw) -> bool:
    path = directory / "settings.json"
    if draw.random() < 0.4:
        path.write_bytes(unreadable(draw))
        return True
    tree = json.loads(path.read_text())
    place = draw.choice([p for p in places(tree) if len(p) < 4])
    old: Any = tree
    for key in place:
        old = old[key]
    path.write_text(json.dumps(changed(tree, place, strange_for(old, draw))))
    return True


def records(directory: Path, draw: Draw) -> bool:
    path = directory / "records" / "set.jsonl"
    line = json.loads(path.read_text())
    if draw.random() < 0.5:
        path.write_bytes(unreadable(draw).replace(b"\n", b" ").strip(b"\0 ") + b"x\n")
        return True
    name = draw.choice(sorted(line))
    path.write_text(json.dumps({**line, name: draw.choice([5.5, [1], {"a": 1}])}) + "\n")
    return True


SPOILERS: dict[str, tuple[Callable[[Path, Draw], bool], ...]] = {
    "hf": (
        a_field,
        a_size,
        a_bomb,
        any_field,
        no_json,
        end_tokens,
        no_file,
        a_pipe_beside,
        weights,
        not_finite,
        header,
        flipped,
        index,
    ),
    "a": (adapter_field, adapter_json, weights, not_finite, header, flipped),
    "m": (metadata, pieces_cut, config_of_megatron, flipped),
    "e": (settings, records),
}


def try_all(good: Good, draw: Draw, kinds: list[str], number: int) -> None:
    """Spoil so many directories in turn and run every command on each."""
    turn = [(kind, spoil) for kind in kinds for spoil in SPOILERS[kind]]
    begin = draw.randrange(len(turn))
    for i in range(number):
        kind, spoil = turn[(begin + i) % len(turn)]
        spoilt = good.directory / f"spoilt{good.count}"
        shutil.copytree(good.directory / kind, spoilt)
        nonsense = spoil(spoilt, draw)
        for arguments in good.commands(kind, spoilt):
            outcome = run_forked(arguments, SECONDS, good.directory, imports=IMPORTS, stop_at=())
            unseen = spoil is not_finite and kind == "hf" and "inspect" in arguments  # which reads no model's values
            check_ending(outcome, (arguments, spoil.__name__), nonsense and not unseen)
        assert not good.trace.exists(), spoil.__name__
        shutil.rmtree(spoilt)


def test_what_is_right_is_taken(good):
    """Else every refusal below would mean nothing."""
    for kind in SPOILERS:
        for arguments in good.commands(kind, good.directory / kind):
            outcome = run_forked(arguments, SECONDS, good.directory, imports=IMPORTS, stop_at=())
            assert outcome.kind == "ok", (arguments, outcome)


def test_spoilt_directories(good, seed):
    try_all(good, random.Random(seed), list(SPOILERS), 22)


@pytest.mark.slow
def test_many_spoilt_directories(good, seed):
    try_all(good, random.Random(seed), list(SPOILERS), 180)


def test_manifests_with_one_thing_wrong(tmp_path, seed):
    """Every place of a checkpoint's manifest in turn, its own checksum made right again."""
    draw = random.Random(seed)
    entry = write_file(tmp_path / "state.json", b"{}")
    write_manifest(tmp_path, 4, {"method": "bridge", "tensor": 1}, {"state.json": entry})
    tree = json.loads((tmp_path / MANIFEST).read_text())
    assert read_manifest(tmp_path)["step"] == 4
    for place in (p for p in places(tree) if p[0] not in ("crc32", "layout")):
        old: Any = tree
        for key in place:
            old = old[key]
        bad = changed(tree, place, strange_for(old, draw))
        bad["crc32"] = zlib.crc32(json.dumps({k: v for k, v in bad.items() if k != "crc32"}, sort_keys=True).encode())
        (tmp_path / MANIFEST).write_text(json.dumps(bad))
        with pytest.raises(CheckpointError) as error:
            read_manifest(tmp_path)
        assert len(str(error.value).splitlines()) == 1
    for _ in range(20):
        (tmp_path / MANIFEST).write_bytes(unreadable(draw))
        with pytest.raises(CheckpointError):
            read_manifest(tmp_path)


def test_states_with_one_thing_wrong(seed):
    """Every place of a run's state.json in turn: a message, and nothing of it is used."""
    draw = random.Random(seed)
    record = {"moments": ["exp_avg"], "scalars": {"step": [3.0, "float32"]}}
    part = {
        "records": {"optimizer": {"a": record, "b": {"moments": [], "scalars": {"step": 2}}}},
        "slots": {"theta_hat": {"moments": True, "step": 3}},
        "group_steps": {"base": 3, "adapter": None},
        "rng": {"torch": "AAAA", "tracker": {"model": "AAAA"}},
    }
    content = merge_states([part], {"anything": 1})
    assert parse_state(content)["records"]["optimizer"]["a"] == record
    tree = json.loads(content)
    for place in (p for p in places(tree) if p[0] != "extra" or len(p) == 1):
        old: Any = tree
        for key in place:
            old = old[key]
        wrong = strange_for(old, draw)
        counts = type(old) in (int, float) or old is None or place[-2:] == ("scalars", "step")
        if counts and (wrong is None or type(wrong) in (bool, int, float)):
            continue  # a step that has not been, or another number
        with pytest.raises(ValueError, match=r"which no run writes there|no random number state") as error:
            parse_state(json.dumps(changed(tree, place, wrong)).encode())
        assert len(str(error.value).splitlines()) == 1
    for _ in range(20):
        with pytest.raises(ValueError):
            parse_state(unreadable(draw))
