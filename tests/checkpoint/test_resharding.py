"""Every trained tensor, moment and slot arrives bit for bit, from any layout in any other, in real processes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.reference.cases import make_case


def test_a_range_of_a_matrix_is_at_most_three_rectangles(seed):
    from bridge_mcore.checkpoint.pieces import rectangles

    rng = random.Random(seed)
    for width in range(1, 8):
        cases = [(low, high) for high in range(40) for low in range(high + 1)]
        big = rng.randrange(1, 1000)
        cases += [tuple(sorted((rng.randrange(10**6), rng.randrange(10**6)))) for _ in range(50)]
        for w in (width, big):
            for low, high in cases:
                found = list(rectangles(low, high, w))
                assert len(found) <= 3
                at = low
                for row, column, rows, columns in found:
                    assert (row * w + column, rows > 0, columns > 0) == (at, True, True)
                    assert rows == 1 or (column, columns) == (0, w)  # contiguous in the flattened matrix
                    assert column + columns <= w
                    at += rows * columns
                assert at == max(low, high)


def test_pieces_of_any_cut_make_up_the_whole_tensor(seed):
    """Shards as Megatron holds them, cut into random ranges: each element lands once, where HF's order has it."""
    from bridge_mcore.checkpoint.pieces import EMBEDDING, Held, Split, bands_of
    from bridge_mcore.model.families.base import ModelShape

    rng = random.Random(seed)

    class Shape(ModelShape):
        def __init__(self, vocab_size: int) -> None:
            object.__setattr__(self, "vocab_size", vocab_size)
            object.__setattr__(self, "tied", True)

    for _ in range(200):
        size, columns, vocab = rng.randint(1, 4), rng.randint(1, 7), rng.randint(5, 23)
        rows = rng.randint(1, 5)
        gate, up = torch.randn(rows * size, columns), torch.randn(rows * size, columns)
        embedding = torch.randn(vocab, columns)
        padded = torch.cat([embedding, torch.full((-vocab % size, columns), float("nan"))])
        wide = torch.randn(rows, columns * size)
        bias = torch.randn(rows * size)
        kinds = {
            "a.linear_fc1.weight": (0, [torch.cat(p) for p in zip(gate.chunk(size), up.chunk(size), strict=True)]),
            EMBEDDING: (0, list(padded.chunk(size))),
            "output_layer.weight": (0, list(padded.chunk(size))),
            "a.linear_fc2.weight": (1, list(wide.chunk(size, 1))),
            "a.linear_qkv.bias": (0, list(bias.chunk(size))),
        }
        wholes = {
            "a.linear_fc1.weight.gate": gate, "a.linear_fc1.weight.up": up, EMBEDDING: embedding,
            "a.linear_fc2.weight": wide, "a.linear_qkv.bias": bias,
        }  # fmt: skip
        for name, (dim, shards) in kinds.items():
            found = {}
            for rank, shard in enumerate(shards):
                shard = shard.contiguous()
                bands = tuple(bands_of(name, tuple(shard.shape), Split(dim, rank, size), Shape(vocab)))
                cuts = sorted(rng.randint(0, shard.numel()) for _ in range(rng.randint(0, 4)))
                for low, high in zip([0, *cuts], [*cuts, shard.numel()], strict=True):
                    held = Held(name, tuple(shard.shape), bands, low, True)
                    for piece in held.pieces("x", shard.view(-1)[low:high]):
                        key = piece.key.removeprefix("x/")
                        whole, count = found.setdefault(
                            key, (torch.full(piece.global_shape, 9.0), torch.zeros(piece.global_shape))
                        )
                        place = tuple(
                            slice(o, o + n) for o, n in zip(piece.global_offset, piece.local_shape, strict=True)
                        )
                        whole[place] = piece.data
                        count[place] += 1
            for key, (whole, count) in found.items():
                assert torch.equal(whole, wholes[key]) and bool((count == 1).all()), (name, key, size)
            expected = {"a.linear_fc1.weight": 2}.get(name, 1)
            assert len(found) == expected


def run_ranks(store: Path, world: int, arguments: list[str], sample: int, seed: int) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.checkpoint.resharding_job", *arguments]
    environment = {**os.environ, "WORLD_SIZE": str(world), "STORE": str(store), "OMP_NUM_THREADS": "1"}
    environment |= {"SAMPLE": str(sample), "SEED": str(seed)}
    ranks = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(r)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for r in range(world)
    ]
    try:
        output = [rank.communicate(timeout=400)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(o[-3000:] for o in output)


def reshard(tmp_path: Path, seed: int, processes: int, groups: dict[str, tuple[str, str, list[str]]], sample: int):
    """Save in one process and in all layouts; load in all layouts (`sample` checkpoints each) and in one process."""
    from tests.checkpoint.resharding_job import load_all, save

    arguments: list[str] = []
    streams = {}
    for name, (family, dtype, layouts) in groups.items():
        layers = 4 if any("virtual" in layout for layout in layouts) else 2
        make_case(tmp_path / name / "case", family, seed % 10_000, layers=layers)
        streams[name] = save(tmp_path / name, dtype, "tensor=1")
        arguments += ["--"] * bool(arguments) + [str(tmp_path / name), dtype, *layouts]
    run_ranks(tmp_path / "store", processes, arguments, sample, seed)
    for name, (_, dtype, layouts) in groups.items():
        assert load_all(tmp_path / name, dtype, "tensor=1", streams[name]) == len(layouts) + 1


PLAIN = ",distributed_optimizer=0"


def test_two_processes_reshard_exactly(world, tmp_path, seed):
    groups = {
        "dense": ("qwen2", "float32", ["tensor=2", "pipeline=2,virtual_pipeline=2", "data=2", "data=2" + PLAIN]),
        "bf16": ("qwen3", "bfloat16", ["context=2", "tensor=2,sequence=1", "pipeline=2"]),
        "moe": ("qwen3_moe", "float32", ["expert=2", "expert=2" + PLAIN, "tensor=2,sequence=1,expert=2"]),
    }
    reshard(tmp_path, seed, 2, groups, sample=3)


@pytest.mark.slow
def test_four_processes_reshard_exactly(world, tmp_path, seed):
    dense = ["tensor=2,pipeline=2", "tensor=2,data=2", "pipeline=2,data=2", "data=4", "tensor=2,pipeline=2,sequence=1"]
    more = ["pipeline=2,virtual_pipeline=2,tensor=2", "context=2,data=2", "tensor=2,context=2,sequence=1", "data=4"]
    moe = ["expert=4", "expert=2,pipeline=2", "tensor=2,sequence=1,expert=2,data=2", "expert=2,data=4", "data=4"]
    groups = {
        "dense": ("qwen2", "float32", [*dense, "data=4" + PLAIN]),
        "untied": ("qwen2_untied", "bfloat16", more),
        "moe": ("qwen3_moe", "bfloat16", [*moe, "expert=2,data=4" + PLAIN]),
    }
    reshard(tmp_path, seed, 4, groups, sample=5)
