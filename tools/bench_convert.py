"""Time and peak memory of checkpoint conversions, against a plain copy and against what others have.

    python tools/bench_convert.py --shape 0.5b --repeat 3
    python tools/bench_convert.py --shape 7b --only cp,ours --limit-gib 3
    python tools/bench_convert.py --source DIR --mbridge DIRECTORY_OF_PIP_INSTALL_TARGET

Every contestant is a process of its own, and they take turns, so that each round sees the same machine; ratios are of
the same round's `cp`. Two clocks: the work alone (imports left out, as a loop over many checkpoints sees it) until the
data is on the disk, and the whole process. Memory is the process's peak resident set; what the imports alone take is
shown beside it. mbridge (pip install --no-deps --target DIR mbridge==0.15.1) has no way to Megatron's files: it is
timed from HF into a model and back to HF, as transformers is; ours writes a distributed checkpoint in between. Its
Transformer Engine layers are replaced by Megatron's own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary: of Qwen2.5 0.5B and 3B, and Llama 2 7B
    "tiny": (256, 688, 4, 8, 4, 8000),
    "0.5b": (896, 4864, 24, 14, 2, 151936),
    "3b": (2048, 11008, 36, 16, 2, 151936),
    "7b": (4096, 11008, 32, 32, 32, 32000),
}

_OURS = """
from bridge_mcore.platform.device import setup_device
setup_device("cpu")
from bridge_mcore.checkpoint import convert as c
from bridge_mcore.config.schema import Parallel
import transformers
transformers.AutoConfig.for_model("qwen2"), transformers.AutoConfig.for_model("llama")  # imports more
options = c.Options(workers=c.default_workers())
"""
#: source and target are Paths; the clock starts at `begin()` and stops at the script's end.
_SCRIPTS = {
    "imports": _OURS + "begin()\n",
    "ours, HF → Megatron": _OURS
    + "begin()\nc.to_megatron(c.open_hf(source), target, Parallel(tensor=2, pipeline=2), None, 1, options)\n",
    "ours, Megatron → HF": _OURS + "begin()\nc.to_hf(c.open_megatron(source), target, None, options)\n",
    "safetensors, load + save": """
import os, torch
from safetensors.torch import load_file, save_file
begin()
target.mkdir()
for path in sorted(source.glob("*.safetensors")):
    save_file(load_file(path), target / path.name)
os.sync()
""",
    "transformers, load + save": """
import os, torch, transformers
begin()
model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
model.save_pretrained(target, max_shard_size="5GB")
os.sync()
""",
    "mbridge, HF → model → HF": """
import os, torch, transformers
from bridge_mcore.platform.device import setup_device
platform = setup_device("cpu")
from bridge_mcore.platform.distributed import process_groups
from bridge_mcore.config.schema import Parallel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from mbridge import AutoBridge
from mbridge.core.llm_bridge import LLMBridge
# Without Transformer Engine: Megatron's own layers, whose norms have names of their own.
def layers(self, vp_stage=None):
    return get_gpt_decoder_block_spec(self.config, use_transformer_engine=False)
def norm(self, name):
    return [f"model.layers.{name.split('.')[2]}.input_layernorm.weight"]
transformers.Qwen2Config.rope_theta = 1e6  # where it looks for it, transformers 5 has it elsewhere
LLMBridge._get_transformer_layer_spec, LLMBridge._weight_name_mapping_other = layers, norm
begin()
with process_groups(platform, Parallel(), 0):
    bridge = AutoBridge.from_pretrained(str(source))
    bridge.set_extra_args(
        use_cpu_initialization=True, persist_layer_norm=False, bias_activation_fusion=False, bias_dropout_fusion=False,
        masked_softmax_fusion=False, apply_rope_fusion=False, gradient_accumulation_fusion=False,
    )
    bridge._MLP_MAPPING["pre_mlp_layernorm.weight"] = bridge._MLP_MAPPING["mlp.linear_fc1.layer_norm_weight"]
    model = bridge.get_model()
    bridge.load_weights(model, str(source))
    bridge.save_weights(model, str(target))
os.sync()
""",
}
_START = """
import sys, time
from pathlib import Path
source, target = (Path(a) for a in sys.argv[1:])
def begin():
    global started
    started = time.perf_counter()
"""
_END = "print('seconds', time.perf_counter() - started)\n"


@dataclass
class Result:
    """Of one contestant: seconds of work and of the process, CPU seconds and peak MiB, of each round."""

    work: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    problem: str = ""


def make_checkpoint(directory: Path, shape: str) -> None:
    """A random bf16 checkpoint of a Qwen2 (or Llama) shape, written block by block."""
    import torch
    import transformers

    from bridge_mcore.checkpoint.hf import expected_tensors
    from bridge_mcore.checkpoint.hf_out import shard_names, write_index
    from bridge_mcore.checkpoint.safetensors_file import SafetensorsWriter, blocks
    from bridge_mcore.model.families import find_family

    hidden, ffn, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    kind = "llama" if shape == "7b" else "qwen2"
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, tie_word_embeddings=kind == "qwen2",
        architectures=["LlamaForCausalLM" if kind == "llama" else "Qwen2ForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    tensors = expected_tensors(*find_family(directory))
    shards: list[dict] = [{}]
    for name, size in tensors.items():
        if sum(torch.Size(s).numel() * 2 for _, s in shards[-1].values()) > 5e9:
            shards.append({})
        shards[-1][name] = (torch.bfloat16, size)
    generator = torch.Generator().manual_seed(0)
    files = shard_names(len(shards))
    for file, shard in zip(files, shards, strict=True):
        with SafetensorsWriter(directory / file, shard) as writer:
            for name, (_, size) in shard.items():
                width = torch.Size(size[1:]).numel() * 2
                for low, high in blocks(size[0], width, 64 << 20):
                    part = torch.empty(high - low, *size[1:], dtype=torch.bfloat16).normal_(
                        0, 0.02, generator=generator
                    )
                    writer.write(name, low, part)
    write_index(directory, dict(zip(files, map(list, shards), strict=True)), 0)


def run(command: list[str], result: Result, environment: dict[str, str], limit: int | None) -> None:
    """Run one process and note its times and its peak."""
    if limit:  # of anonymous memory: what a file mapping shows is the page cache's
        command = ["prlimit", f"--data={limit}", *command]
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        whole = time.perf_counter() - start
        log.seek(0)
        text = log.read()
    if status:
        result.problem = (text.strip().splitlines() or ["killed"])[-1][:160]
        return
    seconds = [float(line.split()[1]) for line in text.splitlines() if line.startswith("seconds ")]
    result.work.append(seconds[-1] if seconds else whole)
    result.whole.append(whole)
    result.cpu.append(usage.ru_utime + usage.ru_stime)
    result.peak.append(usage.ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--source", type=Path, help="a checkpoint, instead of a random one of --shape")
    parser.add_argument("--scratch", type=Path, help="where to write; default: a temporary directory")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="parts of the contestants' names, with commas between")
    parser.add_argument("--mbridge", type=Path, help="directory with mbridge in it")
    parser.add_argument("--limit-gib", type=float, help="most anonymous memory of each process")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bench-convert-", dir=args.scratch))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path.cwd())}
    if args.mbridge:
        environment["PYTHONPATH"] += f":{args.mbridge.resolve()}"
    try:
        source = args.source
        if source is None:
            print(f"making a random {args.shape} checkpoint …", flush=True)
            source = scratch / "source"
            # In a process of its own: a child's peak would start at this one's memory.
            maker = "import sys; from tools.bench_convert import *; make_checkpoint(Path(sys.argv[1]), sys.argv[2])"
            command = [sys.executable, "-c", maker, str(source), args.shape]
            subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
        size = sum(p.stat().st_size for p in source.glob("*.safetensors"))
        names = ["cp", *_SCRIPTS]
        if not args.mbridge:
            names.remove("mbridge, HF → model → HF")
        if args.only:
            names = [n for n in names if n in ("cp", "imports") or any(part in n for part in args.only.split(","))]
        results = {name: Result() for name in names}
        limit = int(args.limit_gib * 2**30) if args.limit_gib else None
        for _ in range(args.repeat):
            megatron = scratch / "megatron"
            for name, result in results.items():
                print(f"{name} …", flush=True)
                out = megatron if name == "ours, HF → Megatron" else scratch / "out"
                reading = megatron if name == "ours, Megatron → HF" else source
                os.sync()
                if name == "cp":
                    command = ["sh", "-c", f"cp -r '{reading}' '{out}' && sync"]
                else:
                    command = [sys.executable, "-c", _START + _SCRIPTS[name] + _END, str(reading), str(out)]
                run(command, result, environment, limit)
                if name != "ours, HF → Megatron":
                    shutil.rmtree(out, ignore_errors=True)
                if name == "ours, Megatron → HF" or "ours, Megatron → HF" not in results:
                    shutil.rmtree(megatron, ignore_errors=True)
        report(results, size)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def report(results: dict[str, Result], size: int) -> None:
    """Medians over the rounds; ratios to the same round's cp."""
    print(
        f"\n{size / 2**30:.2f} GiB of tensors; medians of {len(results['cp'].work)} rounds, until all is on the disk\n"
    )
    print("| | work, s | times cp (each round) | whole process, s | CPU, s | peak, MiB |")
    print("|---|---|---|---|---|---|")
    for name, r in results.items():
        if r.problem:
            print(f"| {name} | failed: {r.problem} | | | | |")
            continue
        ratios = [a / b for a, b in zip(r.work, results["cp"].work, strict=True)]
        shown = (
            ""
            if name in ("cp", "imports")
            else f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        )
        work = "" if name == "imports" else f"{statistics.median(r.work):.2f}"
        whole, cpu, peak = (statistics.median(x) for x in (r.whole, r.cpu, r.peak))
        print(f"| {name} | {work} | {shown} | {whole:.2f} | {cpu:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
