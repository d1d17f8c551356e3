"""HF → Megatron → HF is bit-identical whatever the model and the layout, and Megatron's own loader agrees."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bridge_mcore.checkpoint.convert import (
    Options,
    open_hf,
    open_megatron,
    to_hf,
    to_megatron,
    with_adapter,
    with_own_adapter,
)
from bridge_mcore.checkpoint.inspect import inspect
from bridge_mcore.checkpoint.safetensors_dir import SafetensorsDirectory
from bridge_mcore.config.schema import Parallel
from bridge_mcore.data.tokenizer import task_tokenizer
from bridge_mcore.errors import BridgeError, CheckpointError, ConfigError
from tests.models import KINDS, MOE, save_tiny
from tests.parallel.processes import run_ranks

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORCE = Options(force=True)


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors, by the safetensors library."""
    return {k: v for path in sorted(directory.glob("*.safetensors")) for k, v in load_file(path).items()}


def assert_same(a: Path, b: Path) -> None:
    """The same names, dtypes and bits; a tied head's copy may be missing."""
    one, other = tensors_of(a), tensors_of(b)
    if "lm_head.weight" not in other:
        one.pop("lm_head.weight", None)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)), name


def random_model(directory: Path, draw: random.Random) -> Parallel:
    """A random architecture, shape and dtype in `directory`; a layout that it fits."""
    kind = draw.choice(["llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "gemma3_text", "olmo2"])
    tensor = draw.choice([1, 2, 3, 4])
    kv_heads = tensor * draw.randint(1, 2)
    heads, head_dim, layers = kv_heads * draw.randint(1, 3), draw.choice([2, 6, 8]), draw.randint(1, 7)
    options = {
        "vocab_size": draw.randint(50, 200), "hidden_size": heads * head_dim, "intermediate_size": tensor * 12,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64, "tie_word_embeddings": draw.random() < 0.5,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    }  # fmt: skip
    if kind not in ("qwen2", "olmo2"):
        options["head_dim"] = head_dim
    if kind == "mistral":
        options["sliding_window"] = None
    expert = 1
    if kind == "qwen3_moe":
        expert = draw.choice([1, 2])
        options |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 10, "norm_topk_prob": True}
    config = transformers.AutoConfig.for_model(kind, **options)
    torch.manual_seed(draw.randrange(2**31))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=draw.choice(DTYPES))
    model.save_pretrained(directory, max_shard_size=draw.choice(["20KB", "5GB"]))
    pipeline = draw.randint(1, min(4, layers))
    return Parallel(
        tensor=tensor,
        pipeline=pipeline,
        virtual_pipeline=draw.randint(1, layers // pipeline),
        expert=expert,
    )


def test_round_trips_of_random_models_are_exact(tmp_path, seed):
    """Heads, groups, biases, tied or not, vocabularies that TP does not divide, layers that PP does not, dtypes."""
    draw = random.Random(seed)
    for number in range(24):
        here = tmp_path / str(number)
        parallel = random_model(here / "hf", draw)
        options = Options(workers=draw.randint(1, 3), shard_bytes=draw.choice([10_000, 10**9]))
        to_megatron(open_hf(here / "hf"), here / "m", parallel, None, draw.choice([1, 1, 64]), options)
        to_hf(open_megatron(here / "m"), here / "back", None, options)
        assert_same(here / "hf", here / "back")
        old, new = (json.loads((here / d / "config.json").read_text()) for d in ("hf", "back"))
        assert old == new
        transformers.AutoModelForCausalLM.from_pretrained(here / "back")  # with its index, where it has one


@pytest.mark.parametrize("kind", [*KINDS, MOE])
def test_a_cast_is_torchs(tmp_path, seed, kind):
    save_tiny(kind, tmp_path / "hf", seed=seed % 1000)
    to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m", Parallel(tensor=2), torch.bfloat16, 1, Options())
    to_hf(open_megatron(tmp_path / "m"), tmp_path / "back", None, Options())
    source, found = tensors_of(tmp_path / "hf"), tensors_of(tmp_path / "back")
    assert all(torch.equal(found[name], source[name].bfloat16()) for name in found)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "bfloat16"


def test_megatron_itself_loads_what_was_written_and_writes_what_is_read(tmp_path, seed):
    """Megatron's own GPTModel, TP2 × PP2 and EP2 × PP2, in both its ways of naming; padded vocabulary."""
    kinds = ("qwen2_untied", MOE)
    for kind in kinds:
        save_tiny(kind, tmp_path / kind / "hf", seed=seed % 1000, vocab=121, layers=2)
        parallel = Parallel(pipeline=2) if kind == MOE else Parallel()
        to_megatron(open_hf(tmp_path / kind / "hf"), tmp_path / kind / "m", parallel, torch.bfloat16, 1, Options())
    run_ranks(4, "tests.checkpoint.megatron_job", *(str(tmp_path / kind) for kind in kinds))
    for here in (tmp_path / kind for kind in kinds):
        to_hf(open_megatron(here / "m"), here / "wanted", None, Options())
        for name in ("stacked", "spelt"):
            to_hf(open_megatron(here / name, here / "wanted"), here / f"hf_{name}", None, Options())
            assert_same(here / "wanted", here / f"hf_{name}")


def test_a_config_that_tells_of_another_model_is_refused(tmp_path):
    """Fewer layers than are stored must not be cut off in silence; every misfit is in the message."""
    save_tiny("llama", tmp_path / "hf", layers=3)
    to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m", Parallel(), None, 1, Options())
    config = tmp_path / "m" / "hf" / "config.json"
    original = json.loads(config.read_text())
    for change, named in (
        ({"num_hidden_layers": 2}, "layers"),
        ({"num_hidden_layers": 4}, "layers"),
        ({"tie_word_embeddings": False}, "missing: output_layer.weight"),
        ({"intermediate_size": 90}, "misshapen: decoder.layers.0.mlp.linear_fc1.weight"),
        ({"vocab_size": 130}, "misshapen: embedding.word_embeddings.weight"),
        ({"hidden_size": 96}, "misshapen: .*decoder.final_layernorm.weight"),
    ):
        config.write_text(json.dumps({**original, **change}))
        with pytest.raises(CheckpointError, match=named):
            open_megatron(tmp_path / "m")
    config.unlink()
    with pytest.raises(CheckpointError, match="--config"):
        open_megatron(tmp_path / "m")


def test_a_layout_that_cannot_be_is_refused(tmp_path):
    save_tiny("qwen2", tmp_path / "hf", layers=3)
    model = open_hf(tmp_path / "hf")
    for parallel, named in (
        (Parallel(tensor=5), "--tp 5"),
        (Parallel(pipeline=4), "--pp 4"),
        (Parallel(pipeline=2, virtual_pipeline=2), "--vpp 2"),
        (Parallel(expert=2), "--ep 2"),
    ):
        with pytest.raises(ConfigError, match=named):
            to_megatron(model, tmp_path / "m", parallel, None, 1, Options())
    assert not (tmp_path / "m").exists()


def test_what_travels_with_the_weights_comes_along(tmp_path):
    tokenizer = task_tokenizer("running_sums")
    save_tiny("qwen2", tmp_path / "hf", vocab=len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "hf" / "generation_config.json").write_text('{"eos_token_id": [1]}')
    (tmp_path / "hf" / "additional_chat_templates").mkdir()
    (tmp_path / "hf" / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (tmp_path / "hf" / "modeling_evil.py").write_text("print('never')")
    to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m", Parallel(), None, 1, Options())
    to_hf(open_megatron(tmp_path / "m"), tmp_path / "back", None, Options())
    names = {str(p.relative_to(tmp_path / "hf")) for p in (tmp_path / "hf").rglob("*") if p.is_file()}
    back = {str(p.relative_to(tmp_path / "back")) for p in (tmp_path / "back").rglob("*") if p.is_file()}
    assert back == names - {"modeling_evil.py"}
    for name in back - {"model.safetensors"}:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()


def test_a_tied_heads_copy_is_left_out_and_said(tmp_path):
    save_tiny("qwen2", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    said: list[str] = []
    to_hf(open_hf(tmp_path / "hf"), tmp_path / "out", None, Options(say=said.append))
    assert any("lm_head.weight" in line for line in said)
    assert_same(tmp_path / "hf", tmp_path / "out")


def test_dtypes_are_kept_tensor_by_tensor_and_not_mixed_in_one_parameter(tmp_path):
    save_tiny("qwen2", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    mixed = {n: t if "norm" in n else t.bfloat16() for n, t in tensors.items()}
    save_file(mixed, path)
    to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m", Parallel(tensor=2), None, 1, Options())
    to_hf(open_megatron(tmp_path / "m"), tmp_path / "back", None, Options())
    assert_same(tmp_path / "hf", tmp_path / "back")
    mixed["model.layers.1.self_attn.k_proj.weight"] = tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(mixed, path)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.k_proj.*--dtype"):
        to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m2", Parallel(), None, 1, Options())
    to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m2", Parallel(), torch.float32, 1, Options())


def test_quantised_weights_are_refused_by_name(tmp_path):
    save_tiny("qwen2", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"dtype that is not trained: {name}: torch.float8"):
        open_hf(tmp_path / "hf")


def test_numbers_beyond_float16_are_not_made_infinite(tmp_path):
    save_tiny("llama", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = 7e4
    save_file(tensors, path)
    model = open_hf(tmp_path / "hf")
    for write in (
        lambda: to_hf(model, tmp_path / "x", torch.float16, Options()),
        lambda: to_megatron(model, tmp_path / "x", Parallel(tensor=2), torch.float16, 1, Options()),
    ):
        with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj.*float16"):
            write()
        assert not (tmp_path / "x").exists()
    to_hf(model, tmp_path / "x", torch.bfloat16, Options())


def test_what_is_left_of_another_models_conversion_is_not_gone_on_with(tmp_path, monkeypatch):
    """Only config.json differs, so that the tensors fit but mean something else."""
    from bridge_mcore.checkpoint import convert

    save_tiny("qwen3", tmp_path / "hf")
    said: list[str] = []

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    options = Options(say=said.append)
    with monkeypatch.context() as patch:
        patch.setattr(convert, "finish_megatron", stop)
        with pytest.raises(KeyboardInterrupt):
            to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m", Parallel(pipeline=2), None, 1, options)
    assert list((tmp_path / ".m.incomplete").glob("*.distcp"))
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m", Parallel(pipeline=2), None, 1, options)
    assert any("starting anew" in line for line in said) and not any("going on" in line for line in said)


def test_a_merge_does_not_depend_on_how_it_is_cut(tmp_path, seed, monkeypatch):
    """Blocks of one row or of all: the same bits, in HF's form and in any Megatron layout."""
    import peft

    from bridge_mcore.checkpoint import hf_out, megatron_out

    torch.manual_seed(seed)
    adapted = peft.get_peft_model(
        save_tiny("llama", tmp_path / "hf"), peft.LoraConfig(r=7, target_modules="all-linear")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    merging = with_adapter(open_hf(tmp_path / "hf"), tmp_path / "adapter")
    to_hf(merging, tmp_path / "whole", None, Options())
    for module in (hf_out, megatron_out):
        monkeypatch.setattr(module, "BLOCK", 700)  # two rows and a bit
    to_hf(merging, tmp_path / "cut", None, Options())
    to_megatron(merging, tmp_path / "m", Parallel(tensor=2, pipeline=2), None, 1, Options())
    to_hf(open_megatron(tmp_path / "m"), tmp_path / "back", None, Options())
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "back")


def test_more_tensors_than_a_process_may_have_files(tmp_path):
    """Every mapping takes a descriptor: 128 key-value heads and an adapter of hundreds of tensors must not run out."""
    import resource

    import peft

    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=256, intermediate_size=32, num_hidden_layers=12, num_attention_heads=128,
        num_key_value_heads=128, head_dim=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "hf")
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path / "adapter")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 60, hard))
    try:
        merging = with_adapter(open_hf(tmp_path / "hf"), tmp_path / "adapter")
        to_megatron(merging, tmp_path / "m", Parallel(tensor=2), None, 1, Options())
        to_hf(open_megatron(tmp_path / "m"), tmp_path / "back", None, Options())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_vocabulary_that_is_cut_is_said(tmp_path):
    save_tiny("qwen2", tmp_path / "hf", vocab=121)
    said: list[str] = []
    to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m", Parallel(), None, 128, Options())
    to_hf(open_megatron(tmp_path / "m"), tmp_path / "back", None, Options(say=said.append))
    assert any("7 rows beyond the vocabulary of 121 are left out; they are zeros" in line for line in said)
    path = tmp_path / "m" / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 100}))
    to_hf(open_megatron(tmp_path / "m"), tmp_path / "short", None, Options(say=said.append))
    assert any("28 rows" in line and "not zeros: check that vocab_size" in line for line in said)


def test_nothing_but_a_checkpoint_is_ever_replaced(tmp_path):
    save_tiny("qwen2", tmp_path / "hf")
    model = open_hf(tmp_path / "hf")
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    for options in (Options(), FORCE):
        with pytest.raises(CheckpointError, match="exists already"):
            to_hf(model, precious, None, options)
    (precious / "config.json").write_text('{"port": 80}')
    with pytest.raises(CheckpointError, match="exists already"):
        to_hf(model, precious, None, FORCE)
    to_hf(model, tmp_path / "trainer", None, Options())
    (tmp_path / "trainer" / "checkpoint-10").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        to_hf(model, tmp_path / "trainer", None, FORCE)
    assert (precious / "thesis.txt").read_text() == "years"
    for inside in (tmp_path / "hf", tmp_path / "hf" / "out", tmp_path):
        with pytest.raises(CheckpointError, match="in one another"):
            to_hf(model, inside, None, FORCE)
    to_hf(model, tmp_path / "out", torch.bfloat16, Options())
    with pytest.raises(CheckpointError, match="--force"):
        to_hf(model, tmp_path / "out", None, Options())
    to_hf(model, tmp_path / "out", None, FORCE)
    assert_same(tmp_path / "hf", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "home", "out", "trainer"]


def test_a_failure_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    from collections import namedtuple

    from bridge_mcore.checkpoint import staging

    save_tiny("qwen2", tmp_path / "hf")
    model = open_hf(tmp_path / "hf")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**5))
    with pytest.raises(CheckpointError, match=r"needs .* GiB, but its disk has"):
        to_hf(model, tmp_path / "out", None, Options())
    monkeypatch.undo()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bridge_mcore.checkpoint.safetensors_file.os.pwrite", full)
    with pytest.raises(BridgeError, match="the disk is full"):
        to_hf(model, tmp_path / "out", None, Options())
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("stabilised", [False, True])
def test_a_merged_adapter_is_pefts(tmp_path, seed, stabilised):
    """Written by peft, merged by us and by peft, HF → HF and on the way to Megatron; logits with the live adapter."""
    import peft

    torch.manual_seed(seed)
    model = save_tiny("qwen2", tmp_path / "hf", seed=seed % 1000)
    config = peft.LoraConfig(
        r=6, lora_alpha=9, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"], use_rslora=stabilised
    )
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    tokens = torch.randint(0, 120, (2, 17))
    with torch.no_grad():
        live = adapted.eval()(tokens).logits
    merging = with_adapter(open_hf(tmp_path / "hf"), tmp_path / "adapter")
    to_hf(merging, tmp_path / "merged", None, Options())
    to_megatron(merging, tmp_path / "m", Parallel(tensor=2, pipeline=2), None, 1, Options())
    to_hf(open_megatron(tmp_path / "m"), tmp_path / "back", None, Options())
    want = adapted.merge_and_unload().state_dict()
    for directory in ("merged", "back"):
        found = tensors_of(tmp_path / directory)
        assert max(float((found[n] - want[n]).abs().max()) for n in found) < 1e-6
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / directory).eval()
        with torch.no_grad():
            assert (loaded(tokens).logits - live).abs().max() < 2e-5


def test_an_adapter_of_another_model_is_refused_tensor_by_tensor(tmp_path):
    import peft

    model = save_tiny("qwen2", tmp_path / "hf")
    save_tiny("qwen2", tmp_path / "other", layers=1)
    peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"unexpected: .*layers\.1\.self_attn\.q_proj"):
        with_adapter(open_hf(tmp_path / "other"), tmp_path / "adapter")


def test_a_runs_checkpoint_gives_theta_merged_model_and_adapter(world, tmp_path, seed):
    """What `export` writes while training runs, and what the converter makes of the checkpoint afterwards."""
    from bridge_mcore.checkpoint.extract import from_run
    from bridge_mcore.checkpoint.run_state import save_state
    from bridge_mcore.config.load import dump_config
    from tests.checkpoint.resharding_job import moments
    from tests.checkpoint.test_export import make_policy

    save_tiny("qwen3", tmp_path / "run" / "base", seed=seed % 1000)
    policy = make_policy(world, tmp_path / "run" / "base", seed % 1000)
    for m in policy.optimizer.pairs["base"]:
        policy.optimizer.state(m).update(moments(m.value, 5))  # as after a step
    from bridge_mcore.config.schema import Adapter, Config

    config = Config(adapter=Adapter(rank=5, alpha=20))
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    layout = {"method": "bridge", "optimizer": "adamw"}
    step = save_state(tmp_path / "run" / "checkpoints", policy, 7, {}, layout)
    policy.export_theta(tmp_path / "theta")
    policy.export_merged(tmp_path / "merged")
    policy.export_adapter(tmp_path / "adapter", "base")
    to_hf(open_megatron(step), tmp_path / "theta_out", None, Options())
    to_hf(with_own_adapter(open_megatron(step)), tmp_path / "merged_out", None, Options())
    from_run(tmp_path / "run", tmp_path / "adapter_out", None, None, Options(), tmp_path / "its_theta")
    from_run(tmp_path / "run", tmp_path / "adapter_alone", None, None, Options())
    assert_same(tmp_path / "theta", tmp_path / "theta_out")
    assert_same(tmp_path / "theta", tmp_path / "its_theta")
    one, other = tensors_of(tmp_path / "merged"), tensors_of(tmp_path / "merged_out")
    assert one.keys() == other.keys()
    assert max(float((one[n] - other[n]).abs().max()) for n in one) < 1e-6  # B A in blocks of rows
    assert_same(tmp_path / "adapter", tmp_path / "adapter_out")
    directories = ("adapter", "adapter_out", "adapter_alone")
    configs = [json.loads((tmp_path / d / "adapter_config.json").read_text()) for d in directories]
    bases = [config.pop("base_model_name_or_path") for config in configs]
    assert configs[0] == configs[1] == configs[2]
    # w belongs to the trained θ: what the run started from is never named
    assert bases == ["base", str(tmp_path / "its_theta"), None]


def test_the_difference_of_two_models_is_an_adapter(tmp_path, seed):
    """Exact where the difference has the rank; the best there is, and said, where it has more."""
    import peft

    from bridge_mcore.checkpoint.extract import from_models

    torch.manual_seed(seed)
    model = save_tiny("llama", tmp_path / "base", seed=seed % 1000)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["q_proj", "gate_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(0, 120, (2, 17))
    with torch.no_grad():
        want = adapted.eval()(tokens).logits
    adapted.merge_and_unload().save_pretrained(tmp_path / "tuned")
    said: list[str] = []
    for rank, exact in ((3, True), (1, False)):
        target = tmp_path / f"adapter{rank}"
        from_models(tmp_path / "base", tmp_path / "tuned", target, rank, Options(say=said.append))
        assert any("warning" in line for line in said) != exact
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        with torch.no_grad():
            got = peft.PeftModel.from_pretrained(base, target).eval()(tokens).logits
        assert ((got - want).abs().max() < 1e-4) == exact
    names = {n.split(".")[-3] for n in SafetensorsDirectory(tmp_path / "adapter3", "adapter_model").names()}
    assert names == {"q_proj", "gate_proj"}
    with pytest.raises(CheckpointError, match="same linear layers"):
        from_models(tmp_path / "base", tmp_path / "base", tmp_path / "none", 2, Options())


def _break_tokenizer(hf: Path) -> None:
    (hf / "tokenizer.json").write_text("{")


def _swap_tokenizer(hf: Path) -> None:
    """Another model's: it has more tokens than the model."""
    task_tokenizer("running_sums").save_pretrained(hf)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_break_tokenizer, "tokenizer of .*hf cannot be loaded"),
        (_swap_tokenizer, "does not match the model: its token"),
        (lambda hf: (hf / "generation_config.json").write_text("{"), r"generation_config\.json, line 1: invalid JSON"),
        (lambda hf: (hf / "generation_config.json").write_text("[" * 100_000), "nested too deeply"),
        (lambda hf: (hf / "generation_config.json").write_text('{"eos_token_id": -5}'), "-5 is no token of the model"),
        (lambda hf: (hf / "generation_config.json").write_text('{"eos_token_id": 120}'), "120 is no token"),
        (lambda hf: (hf / "generation_config.json").write_text('{"eos_token_id": [true]}'), "not a token id"),
    ],
)
def test_what_travels_with_the_weights_is_looked_at_first(tmp_path, spoil, said):
    """A tokenizer or an end token that is broken or another model's would be found where the model is used."""
    save_tiny("qwen2", tmp_path / "hf")
    spoil(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=said):
        open_hf(tmp_path / "hf")
    assert re.search(said, inspect(tmp_path / "hf").problem or "")


def test_a_model_without_a_tokenizer_is_converted_and_that_is_said(tmp_path):
    save_tiny("qwen2", tmp_path / "hf")
    said: list[str] = []
    to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m", Parallel(), None, 1, Options(say=said.append))
    assert any(f"{tmp_path / 'hf'} has no tokenizer" in line for line in said)
