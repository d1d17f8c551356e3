#!/usr/bin/env python
"""Write GSM8K (MIT licence) as data/gsm8k/train.jsonl (7,473 rows) and data/gsm8k/test.jsonl (1,319 rows).

    python tools/get_gsm8k.py [data/gsm8k]

Reads openai/gsm8k from the Hugging Face hub through `datasets`. Without the hub, take the two files from
https://github.com/openai/grade-school-math (folder grade_school_math/data): they have the same form.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROWS = {"train": 7473, "test": 1319}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=Path("data/gsm8k"), help="default: data/gsm8k")
    parser.add_argument("--revision", help="branch, tag or commit of the dataset (default: its newest)")
    arguments = parser.parse_args()
    try:
        from datasets import load_dataset

        splits = {name: load_dataset("openai/gsm8k", "main", split=name, revision=arguments.revision) for name in ROWS}
    except Exception as error:  # a missing package, no network, an unknown revision: one answer to all
        sys.exit(
            f"error: openai/gsm8k could not be read from the hub ({type(error).__name__}: {error}).\n"
            "Put train.jsonl and test.jsonl of https://github.com/openai/grade-school-math "
            f"(folder grade_school_math/data) into {arguments.directory} instead; they have the same form."
        )
    arguments.directory.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        if len(rows) != ROWS[name]:
            print(f"warning: the {name} split has {len(rows)} rows, the published one has {ROWS[name]}")
        path = arguments.directory / f"{name}.jsonl"
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            for row in rows:
                line = {"question": row["question"], "answer": row["answer"]}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        partial.replace(path)
        print(f"wrote {path}: {len(rows)} problems")


if __name__ == "__main__":
    main()
