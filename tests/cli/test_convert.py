"""`bridge-mcore convert` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from bridge_mcore.cli.main import main
from tests.models import save_tiny


def convert(*arguments: object) -> None:
    """Run the command in this process, as `main` does; SystemExit carries another exit code than 0."""
    try:
        main(["convert", *map(str, arguments)])
    except SystemExit as end:
        if end.code:
            raise


def test_there_and_back_with_verification(world, tmp_path, capsys):
    save_tiny("qwen3", tmp_path / "hf", vocab=121, layers=3)
    convert("hf-to-mcore", tmp_path / "hf", tmp_path / "m", "--tp", 2, "--pp", 2, "--verify", "--pad-vocab-to", 128)
    convert("mcore-to-hf", tmp_path / "m", tmp_path / "back", "--verify", "--shard-gb", 0.001)
    said = capsys.readouterr().out
    assert said.count("tensors have the checksums they should have") == 2
    assert said.count("logits of transformers and Megatron") == 2
    wanted = load_file(tmp_path / "hf" / "model.safetensors")
    found = {k: v for path in (tmp_path / "back").glob("*.safetensors") for k, v in load_file(path).items()}
    assert all(torch.equal(wanted[name], found[name]) for name in found)
    convert("inspect", tmp_path / "m", "--verify", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["facts"]["parameters"] == sum(t.numel() for t in found.values())
    assert report["facts"]["checksums"] == f"all {len(found)} are right"
    assert report["facts"]["family"] == "qwen3 (Qwen3ForCausalLM)"
    assert "tensor 2, pipeline 2" in report["facts"]["written for"]


def test_adapters_there_and_back(world, tmp_path, capsys):
    import peft

    model = save_tiny("llama", tmp_path / "hf")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    convert("merge-adapter", tmp_path / "hf", tmp_path / "adapter", tmp_path / "merged", "--verify")
    convert("hf-to-mcore", tmp_path / "hf", tmp_path / "m", "--adapter", tmp_path / "adapter", "--verify")
    convert("extract-adapter", tmp_path / "merged", tmp_path / "again", "--base", tmp_path / "hf", "--rank", 4)
    convert("merge-adapter", tmp_path / "hf", tmp_path / "again", tmp_path / "merged", "--force")
    convert("inspect", tmp_path / "again")
    assert "rank            4" in capsys.readouterr().out
    found, want = load_file(tmp_path / "merged" / "model.safetensors"), adapted.merge_and_unload().state_dict()
    assert all((found[name] - want[name]).abs().max() < 1e-5 for name in found)


def test_a_checkpoint_is_cast_and_cut_anew(world, tmp_path, capsys):
    save_tiny("llama", tmp_path / "hf", vocab=20_000)
    convert("hf-to-hf", tmp_path / "hf", tmp_path / "x", "--dtype", "bfloat16", "--shard-gb", 0.001, "--verify")
    wanted = load_file(tmp_path / "hf" / "model.safetensors")
    files = list((tmp_path / "x").glob("*.safetensors"))
    found = {k: v for path in files for k, v in load_file(path).items()}
    assert len(files) >= 2 and found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name].bfloat16()) for name in found)
    assert json.loads((tmp_path / "x" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hf-to-mcore", "{}/none", "{}/x"], "none does not exist"),
        (["hf-to-mcore", "{}/run", "{}/x"], "is no HF checkpoint"),
        (["hf-to-mcore", "{}/hf", "{}/x", "--tp", "7"], "--tp 7 does not divide"),
        (["hf-to-mcore", "{}/hf", "{}/hf"], "in one another"),
        (["mcore-to-hf", "{}/hf", "{}/x"], "no Megatron distributed checkpoint"),
        (["merge-adapter", "{}/hf", "{}/hf", "{}/x"], "no PEFT adapter"),
        (["extract-adapter", "{}/hf", "{}/x"], "no Megatron distributed checkpoint"),
        (["inspect", "{}"], "no checkpoint that is known"),
        (["inspect", "{}/none"], "does not exist"),
        (["inspect", "{}/hf/config.json"], "is a file"),
        (["inspect", "~nobody-here/x"], "no such user"),
        (["inspect", "{}/loop"], "symbolic links"),
        (["hf-to-mcore", "{}/hf", "{}/run/config.yaml/x"], "config.yaml is a file; choose another directory"),
        (
            ["hf-to-mcore", "{}/hf", "{}/" + "x" * 300],
            "is too long: a path has at most 4000 bytes, each name in it 255",
        ),
        (["hf-to-hf", "{}/hf", "{}/x", "--shard-gb", "inf"], "'--shard-gb': Input should be less than"),
        (["hf-to-hf", "{}/hf", "{}/x", "--shard-gb", "nan"], "--shard-gb"),
        (["mcore-to-hf", "{}/hf", "{}/x", "--merged", "--adapter", "{}/hf"], "choose one"),
        (["mcore-to-hf", "{}/run", "{}/x"], "a run without a checkpoint"),
        (["extract-adapter", "{}/run", "{}/x", "--alpha", "nan"], "'--alpha': Input should be less than"),
        (["extract-adapter", "{}/hf", "{}/x", "--base", "{}/hf", "--with-base", "{}/y"], "choose one"),
    ],
)
def test_what_a_user_can_mend_is_one_message(world, tmp_path, capsys, arguments, said):
    save_tiny("qwen2", tmp_path / "hf")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(SystemExit) as end:
        convert(*(str(a).format(tmp_path) for a in arguments))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "x").exists()


def test_inspect_says_why_a_model_cannot_be_converted(world, tmp_path, capsys):
    save_tiny("qwen2", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_sliding_window": True}))
    with pytest.raises(SystemExit):
        convert("inspect", tmp_path / "hf")
    assert "use_sliding_window=True cannot be expressed" in capsys.readouterr().err


def test_help_comes_at_once():
    start = time.monotonic()
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "bridge_mcore", "convert", "--help"], capture_output=True, text=True
    )
    assert "hf-to-mcore" in shown.stdout and time.monotonic() - start < 60
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "bridge_mcore.cli.convert" in imported and not imported & {"torch", "transformers", "megatron.core"}
