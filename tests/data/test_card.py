"""The card beside prepared data says what it is, and notices changes."""

from __future__ import annotations

import json

import pytest

from bridge_mcore.data.card import FORMAT, card_of, file_hash
from bridge_mcore.data.prepare.statistics import file_statistics
from bridge_mcore.errors import DataError


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train_rl.jsonl"
    path.write_text('{"prompt": "q", "answer": "1"}\n')
    card = {"format": FORMAT, "outputs": {path.name: {"sha256": file_hash(path)}}}
    (tmp_path / "card.json").write_text(json.dumps(card))
    return path


def test_a_card_is_found_and_the_file_is_the_one_it_describes(data):
    card = card_of(data)
    assert card is not None and card["format"] == FORMAT
    data.write_text('{"prompt": "q", "answer": "2"}\n')
    with pytest.raises(DataError, match=r"was changed after it was prepared: .*prepare it again"):
        card_of(data)
    assert card_of(data, verify=False) == card


def test_no_card(data, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("{}")
    assert card_of(other) is None  # the card does not speak of it
    (tmp_path / "card.json").write_text('{"suit": "hearts"}')
    assert card_of(data) is None  # somebody else's
    (tmp_path / "card.json").unlink()
    assert card_of(data) is None
    (tmp_path / "card.json").write_text('{"form')
    with pytest.raises(DataError, match="no readable card"):
        card_of(data)


@pytest.mark.parametrize("outputs", [[], "x", 3, {"train_rl.jsonl": []}, {"train_rl.jsonl": {"sha256": 3}}])
def test_a_damaged_card_is_named(data, tmp_path, outputs):
    (tmp_path / "card.json").write_text(json.dumps({"format": FORMAT, "outputs": outputs}))
    with pytest.raises(DataError, match=r"no readable card: .*card\.json"):
        card_of(data)


def test_statistics_take_no_more_of_a_card_than_they_need(data, tmp_path):
    assert file_statistics(data, None)["card"] == {"created": None, "output": None}
    whole = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(whole | {"created": "now", "recipe": {"output": "here"}}))
    assert file_statistics(data, None)["card"] == {"created": "now", "output": "here"}
