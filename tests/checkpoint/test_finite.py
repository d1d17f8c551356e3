"""Weights that are not finite are refused where they are read and written; the message names tensor and number."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridge_mcore.checkpoint.convert import Options, open_hf, open_megatron, to_hf, to_megatron, with_adapter
from bridge_mcore.checkpoint.extract import from_models
from bridge_mcore.checkpoint.finite import is_finite
from bridge_mcore.checkpoint.hf import load_theta, write_hf
from bridge_mcore.checkpoint.hf_out import cast
from bridge_mcore.checkpoint.inspect import inspect
from bridge_mcore.checkpoint.peft import load_adapter, read_adapter_config, write_adapter
from bridge_mcore.checkpoint.sharded import read_metadata, read_pieces, write_pieces
from bridge_mcore.config.schema import Parallel
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families import find_family
from bridge_mcore.model.gpt import build_chunks
from bridge_mcore.model.lora import LoRAShape, attach_lora
from tests.models import save_tiny

NAME = "model.layers.1.mlp.down_proj.weight"


def spoil(path: Path, name: str, count: int, seed: int) -> None:
    """Put so many NaN, infinities and negative infinities at random places of a tensor."""
    draw = random.Random(seed)
    tensors = load_file(path)
    flat = tensors[name].view(-1)
    for place in draw.sample(range(flat.numel()), count):
        flat[place] = draw.choice([float("nan"), float("inf"), -float("inf")])
    save_file(tensors, path)


@pytest.fixture
def bad(tmp_path, seed):
    save_tiny("qwen2", tmp_path / "hf")
    spoil(tmp_path / "hf" / "model.safetensors", NAME, 3, seed)
    return tmp_path / "hf"


SAID = rf"hf: {NAME} holds 3 values that are not finite \(NaN or infinity\), of 6,144"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_is_what_every_value_says(seed, dtype):
    """Also where the sum of finite values overflows, or of infinite ones cancels out."""
    torch.manual_seed(seed)
    largest = torch.finfo(dtype).max
    for good in (torch.randn(1000).to(dtype), torch.full((1000,), largest, dtype=dtype), torch.zeros(0, dtype=dtype)):
        assert is_finite(good) and bool(good.isfinite().all())
    for values in ([float("inf"), -float("inf")], [float("nan")], [-float("inf")], [largest, largest, float("inf")]):
        bad = torch.randn(1000).to(dtype)
        bad[torch.randperm(1000)[: len(values)]] = torch.tensor(values, dtype=dtype)
        assert not is_finite(bad)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_no_conversion_writes_them(bad, tmp_path, dtype):
    with pytest.raises(CheckpointError, match=SAID):
        to_hf(open_hf(bad), tmp_path / "out", dtype, Options())
    with pytest.raises(CheckpointError, match=SAID):
        to_megatron(open_hf(bad), tmp_path / "out", Parallel(tensor=2), dtype, 1, Options())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_nor_from_a_megatron_checkpoint(tmp_path, monkeypatch, seed):
    save_tiny("qwen2", tmp_path / "hf")
    spoil(tmp_path / "hf" / "model.safetensors", NAME, 3, seed)
    with monkeypatch.context() as patch:  # as somebody else would write it
        patch.setattr("bridge_mcore.checkpoint.megatron_out.is_finite", lambda _: True)
        to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m", Parallel(), None, 1, Options())
    with pytest.raises(CheckpointError, match=f"m: {NAME} holds 3 values"):
        to_hf(open_megatron(tmp_path / "m"), tmp_path / "out", None, Options())


def test_training_and_answering_do_not_load_them(world, bad):
    family, shape = find_family(bad)
    with pytest.raises(CheckpointError, match=SAID):
        load_theta(build_chunks(shape, Parallel(), torch.float32, world[0].device), bad, family, shape)


def adapter(directory: Path, shape, value: float = 0.5) -> LoRAShape:
    lora = LoRAShape(2, 4.0, ("q_proj",))
    names = [f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{x}.weight" for i in range(2) for x in "AB"]
    tensors = {n: torch.full((2, 64) if "_A" in n else (64, 2), 0.5) for n in names}
    write_adapter(directory, tensors, lora, None)
    tensors[names[-1]][7, 1] = value
    save_file(tensors, directory / "adapter_model.safetensors")
    return lora


def test_an_adapter_is_not_merged_loaded_or_promised(world, tmp_path):
    save_tiny("qwen2", tmp_path / "hf")
    _, shape = find_family(tmp_path / "hf")
    lora = adapter(tmp_path / "a", shape, float("nan"))
    said = r"a: .*layers\.1\.self_attn\.q_proj\.lora_B\.weight holds 1 value that is not finite .*, of 128"
    with pytest.raises(CheckpointError, match=said):
        with_adapter(open_hf(tmp_path / "hf"), tmp_path / "a")
    chunks = build_chunks(shape, Parallel(), torch.float32, world[0].device)
    attach_lora(chunks, lora, shape, seed=0)
    with pytest.raises(CheckpointError, match=said):
        load_adapter(chunks, tmp_path / "a", read_adapter_config(tmp_path / "a", shape), shape)
    for config in (None, tmp_path / "hf"):
        report = inspect(tmp_path / "a", config)
        assert "holds 1 value that is not finite" in (report.problem or "") and not report.commands
    with pytest.raises(CheckpointError, match="holds 1 value"):
        write_adapter(tmp_path / "b", load_file(tmp_path / "a" / "adapter_model.safetensors"), lora, None)
    assert not (tmp_path / "b").exists()


def test_a_merge_that_overflows_is_not_written(tmp_path):
    """Base and adapter are finite, their sum in the base's dtype is not."""
    model = save_tiny("qwen2", tmp_path / "hf")
    adapter(tmp_path / "a", find_family(tmp_path / "hf")[1], 3e38)
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 400}))
    assert all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.weight holds 64 values"):
        to_hf(with_adapter(open_hf(tmp_path / "hf"), tmp_path / "a"), tmp_path / "out", torch.float32, Options())


def test_the_difference_of_two_models_is_no_adapter(bad, tmp_path):
    save_tiny("qwen2", tmp_path / "base")
    for base, tuned in ((tmp_path / "base", bad), (bad, tmp_path / "base")):
        with pytest.raises(CheckpointError, match=SAID):
            from_models(base, tuned, tmp_path / "out", 2, Options())


def test_a_cast_beyond_the_dtype_says_so():
    with pytest.raises(CheckpointError, match="x holds numbers beyond float16's largest, 65504; choose"):
        cast(torch.tensor([1e5]), torch.float16, "x")
    with pytest.raises(CheckpointError, match=r"beyond bfloat16's largest, 3\.3895e\+38; choose --dtype float32"):
        cast(torch.tensor([3.4e38]), torch.bfloat16, "x")
    assert cast(torch.tensor([3e38]), torch.bfloat16, "x").isfinite().all()


def test_an_export_of_training_is_refused(world, tmp_path):
    save_tiny("qwen2", tmp_path / "hf")
    tensors = iter([("model.norm.weight", torch.tensor([1.0, float("inf")]))])
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds 1 value that is not finite"):
        write_hf(tmp_path / "out", tmp_path / "hf", tensors)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_a_run_saves_no_such_weights_and_goes_on_from_none(world, tmp_path, monkeypatch):
    """Its moments may be what they are: only weights are looked at."""
    from megatron.core.dist_checkpointing import ShardedTensor

    def piece(key: str, value: float) -> ShardedTensor:
        data = torch.tensor([1.0, value])
        return ShardedTensor(key, data, data.dtype, (2,), (2,), (0,), None)

    for key in ("theta/x", "w/x", "slot/theta_hat/x"):
        with pytest.raises(CheckpointError, match=f"{key} holds 1 value that is not finite"):
            write_pieces(tmp_path, [piece(key, float("nan"))])
    write_pieces(tmp_path, [piece("optimizer/exp_avg/x", float("inf"))])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern={'q_proj': 4}"),
        ({"layers_to_transform": [1]}, "layers_to_transform=[1]"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"r": 4}, "instead of (4, 64)"),
        ({"target_modules": ["q_proj", "k_proj"]}, "missing: base_model.model.model.layers.0.self_attn.k_proj.lora_A"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target module 'lm_head'"),
    ],
)
def test_inspect_promises_what_the_commands_keep(tmp_path, change, said):
    """The same refusal from `inspect`, with and without the base model, as from the merge that it would name."""
    save_tiny("qwen2", tmp_path / "hf")
    adapter(tmp_path / "a", find_family(tmp_path / "hf")[1])
    good = inspect(tmp_path / "a")
    assert good.problem is None and any("merge-adapter" in command for command in good.commands)
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "use_rslora": True}))
    assert "rslora" in inspect(tmp_path / "a", tmp_path / "hf").facts["scale"]
    path.write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError) as refused:
        with_adapter(open_hf(tmp_path / "hf"), tmp_path / "a")
    for base in (None, tmp_path / "hf"):
        report = inspect(tmp_path / "a", base)
        assert said in str(refused.value) and said in str(report.problem) and report.commands == []
    special = inspect(tmp_path / "a").facts.get("special", "")
    assert (next(iter(change)) in special) == (next(iter(change)) not in ("peft_type", "r", "target_modules"))


def test_a_misfit_is_found_before_a_model_is_built(world, tmp_path, monkeypatch):
    """A config.json that speaks of a far larger model must not cost its memory first."""
    from bridge_mcore.rollout import inference

    save_tiny("qwen2", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 1 << 24}))
    monkeypatch.setattr(inference, "build_chunks", lambda *_, **__: pytest.fail("a model was built"))
    with pytest.raises(CheckpointError, match=r"does not fit its config\.json"):
        inference.load_chunks(tmp_path / "hf", None, Parallel(), torch.float32, world[0].device)


def test_resumed_weights_are_looked_at(world, tmp_path, monkeypatch):
    """A checkpoint that another version wrote, and whose checksums are right, holds them."""
    from megatron.core.dist_checkpointing import ShardedTensor

    from bridge_mcore.checkpoint import sharded

    data = torch.tensor([1.0, float("nan")])
    made = ShardedTensor("theta/x", data, data.dtype, (2,), (2,), (0,), None)
    with monkeypatch.context() as patch:
        patch.setattr(sharded, "_require_finite", lambda *_: None)
        _, results = write_pieces(tmp_path, [made])
        plan = sharded.make_plan([made], None, world[0].device)
        assert plan.tensors is not None
        sharded.write_metadata(tmp_path, plan.tensors, {r.index: r.storage_data for r in results})
    metadata, _ = read_metadata(tmp_path, [p.name for p in tmp_path.iterdir()])
    empty = torch.zeros(2)
    target = ShardedTensor("theta/x", empty, empty.dtype, (2,), (2,), (0,), None)
    with pytest.raises(CheckpointError, match="theta/x holds 1 value that is not finite"):
        read_pieces(tmp_path, metadata, [target])
