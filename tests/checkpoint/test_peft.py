"""adapter_config.json: what peft writes is read as peft means it, or refused by the field's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from bridge_mcore.checkpoint.peft import open_adapter, read_adapter_config
from bridge_mcore.config.schema import LORA_PROJECTIONS
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families import find_family
from bridge_mcore.model.families.base import ModelShape
from tests.models import save_tiny

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "q_proj"], "bias": "none"}


@pytest.fixture
def shape(tmp_path: Path) -> ModelShape:
    save_tiny("qwen2", tmp_path)
    return find_family(tmp_path)[1]


def write(directory: Path, **changes: Any) -> Path:
    (directory / "adapter_config.json").write_text(json.dumps({**PLAIN, **changes}))
    return directory


@pytest.mark.parametrize(
    ("targets", "projections"),
    [
        (["v_proj", "q_proj"], ("q_proj", "v_proj")),
        (r".*\.(q|up)_proj", ("q_proj", "up_proj")),
        ("all-linear", LORA_PROJECTIONS),
        ("All-Linear", LORA_PROJECTIONS),
        (["self_attn.o_proj", "mlp.up_proj"], ("o_proj", "up_proj")),
        ([f"model.layers.{i}.mlp.down_proj" for i in range(2)], ("down_proj",)),
    ],
)
def test_targets_choose_what_peft_chooses(tmp_path, shape, targets, projections):
    model = save_tiny("qwen2", tmp_path)
    assert shape.layers == 2
    lora = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, lora)
    chosen = {name.split(".")[-4] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert chosen == set(projections)
    assert read_adapter_config(write(tmp_path, target_modules=targets), shape).projections == projections
    adapted.save_pretrained(tmp_path)  # what peft itself writes of it
    found = read_adapter_config(tmp_path, shape)
    assert set(found.projections) == set(projections)
    open_adapter(tmp_path, found, shape)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"r": None}, "r=None"),
        ({"r": 2.5}, r"r=2\.5"),
        ({"r": True}, "r=True"),
        ({"r": -1}, "r=-1"),
        ({"r": 10**30}, "r=1000"),
        ({"lora_alpha": "8"}, "lora_alpha='8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha=inf"),
        ({"lora_alpha": 10**400}, "lora_alpha=1000"),
        ({"use_dora": True}, "use_dora=True"),
        ({"use_rslora": "yes"}, "use_rslora='yes'"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"layers_to_transform": 0}, "layers_to_transform=0"),
        ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow=1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'.*changed the base"),
        ({"init_lora_weights": "olora"}, "changed the base"),
        ({"init_lora_weights": ["?"]}, "changed the base"),
        ({"target_modules": ["lm_head"]}, "target module 'lm_head'"),
        ({"target_modules": "lm_head"}, "target module 'lm_head'"),
        ({"target_modules": "("}, "no valid pattern"),
        ({"target_modules": "x" * 10**5}, "a pattern of 100000 characters"),
        ({"target_modules": None}, "a list of projections"),
        ({"target_modules": [1]}, "a list of projections"),
        ({"target_modules": []}, "chooses no projection"),
        ({"target_modules": ["model.layers.1.mlp.up_proj"]}, "other projections in layer 1"),
        ({"target_modules": r".*\.0\..*up_proj"}, "other projections in layer 1"),
    ],
)
def test_what_is_not_plain_lora_of_this_model_is_named(tmp_path, shape, change, said):
    with pytest.raises(CheckpointError, match=said) as error:
        read_adapter_config(write(tmp_path, **change), shape)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "one JSON object"),
        (b"null", "one JSON object"),
        (b"{", "line 1: invalid JSON"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'"\xff"', "not UTF-8"),
        (b'{"r": ' + b"1" * 5000 + b"}", "more than 4300 digits"),  # Python's own limit
    ],
)
def test_a_damaged_config_is_one_message(tmp_path, shape, content, said):
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_adapter_config(tmp_path, shape)


def test_a_rank_stabilised_adapter_keeps_its_scale(tmp_path, shape):
    lora = read_adapter_config(write(tmp_path, use_rslora=True), shape)
    assert lora.scale == pytest.approx(8 / 4**0.5)


def test_an_adapters_tensors_are_floats(tmp_path, shape):
    adapted = peft.get_peft_model(save_tiny("qwen2", tmp_path), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name].to(torch.int8)}, path)
    with pytest.raises(CheckpointError, match=r"quantised: .*int8"):
        open_adapter(tmp_path, read_adapter_config(tmp_path, shape), shape)
