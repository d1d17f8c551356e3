"""Share of padding, and balance over replicas, of one step's sequences: packed rows against padded batches.

    python tools/bench_packing.py                                                    # log-normal lengths
    python tools/bench_packing.py FILE.jsonl --field answer --tokenizer MODEL_DIR    # lengths of real texts

Counts, not times: the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from bridge_mcore.model.families.shape import ModelShape, Rope
from bridge_mcore.training.packing import SequenceCost, pack


def lengths_of(options: argparse.Namespace) -> list[int]:
    """Tokens of each sequence."""
    if options.file is None:
        draw = random.Random(options.seed)
        return [min(max(int(draw.lognormvariate(5.5, 0.8)), 8), options.budget) for _ in range(options.sequences)]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    rows = [json.loads(line) for line in options.file.read_text().splitlines() if line.strip()]
    texts = [
        str(row[options.field]) for row in random.Random(options.seed).sample(rows, min(options.sequences, len(rows)))
    ]
    return [len(tokenizer(text)["input_ids"]) for text in texts]


def padded(lengths: list[int], budget: int, ordered: bool) -> float:
    """Padding share of batches of rows × longest ≤ budget, in the given order or longest first."""
    batches: list[list[int]] = []
    for n in sorted(lengths, reverse=True) if ordered else lengths:
        if not batches or max(*batches[-1], n) * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(n)
    laid = sum(max(b) * len(b) for b in batches)
    return 1 - sum(lengths) / laid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--field", default="answer")
    parser.add_argument("--tokenizer")
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--budget", type=int, default=8192, help="tokens of one micro-batch")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lengths = lengths_of(options)
    mean = sum(lengths) / len(lengths)
    spread = f"{min(lengths)} to {max(lengths)} tokens, mean {mean:.0f}"
    print(f"{len(lengths)} sequences of {spread}; budget {options.budget}\n")
    # Qwen2.5-1.5B
    shape = ModelShape(151936, 1536, 8960, 28, 12, 2, 128, 1e-6, Rope(1e6), True, 32768, qkv_bias=True)
    cost = SequenceCost.of(shape)
    print("| layout | micro-batches a replica | padding | costliest replica / mean |\n|---|---|---|---|")
    for name, ranks, multiple, tail, rounds in (
        ("one replica", 1, 1, 1, 1),
        ("8 replicas", 8, 1, 1, 1),
        ("8 replicas, tensor 8 with sequence parallelism", 8, 1, 8, 1),
        ("8 replicas, context 2", 8, 4, 2, 1),
        ("8 replicas, context 8", 8, 16, 2, 1),
        ("4 replicas, pipeline 4 × 2 chunks: rows of one length", 4, 1, 1, 4),
    ):
        context = multiple // 2 if multiple > 1 else 1
        plan = pack(lengths, options.budget * context, ranks, cost, multiple=multiple, micro_batches_multiple=rounds)
        rows = [[sum(-(-lengths[i] // multiple) * multiple for i in micro) for micro in rank] for rank in plan]
        rows = [[-(-row // (tail * context)) * tail * context for row in rank] for rank in rows]
        if rounds > 1:
            rows = [[max(rank)] * len(rank) for rank in rows]
        work = [sum(cost(lengths[i]) for micro in rank for i in micro) for rank in plan]
        padding = 1 - sum(lengths) / sum(map(sum, rows))
        print(f"| {name} | {len(plan[0])} | {padding:.2%} | {max(work) * ranks / sum(work):.4f} |")
    print(f"| padded batches, longest first | | {padded(lengths, options.budget, True):.2%} | |")
    print(f"| padded batches, as they come | | {padded(lengths, options.budget, False):.2%} | |")


if __name__ == "__main__":
    main()
