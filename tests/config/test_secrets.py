"""Keys, tokens and values of environment variables: which are hidden, and how a run that needs them again says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bridge_mcore.config.checks import check_config
from bridge_mcore.config.engine_checks import secret_problems
from bridge_mcore.config.engines import Servers
from bridge_mcore.config.load import dump_config, load_config
from bridge_mcore.config.secrets import HIDDEN, hide_arguments, is_secret_option
from bridge_mcore.errors import ConfigError

EXTERNAL = {"mode": "external", "urls": ["http://h:1"]}
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


@pytest.mark.parametrize(
    "option",
    ["--api-key", "--admin-api-key", "--hf-token", "--HF-TOKEN", "--ssl-keyfile-password", "--control-plane-api-keys",
     "--client-secret", "--aws_credentials", "--api-key=abc", "-token"],
)  # fmt: skip
def test_options_that_carry_secrets(option: str) -> None:
    assert is_secret_option(option)


@pytest.mark.parametrize(
    "option",
    ["--max-total-tokens", "--skip-tokenizer-init", "--tokenizer-path", "--ssl-keyfile", "--stop-token-ids",
     "--tokenizer", "--max-num-batched-tokens=8", "abc", "--keyboard", "--kv-cache-dtype"],
)  # fmt: skip
def test_options_that_do_not(option: str) -> None:
    assert not is_secret_option(option)
    assert hide_arguments([option, "8"]) == [option, "8"]


def test_what_follows_a_secret_option_is_hidden() -> None:
    given = ["--tp", "2", "--hf-token", "a", "--api-key=b", "c", "--control-plane-api-keys", "d", "e", "--dtype", "f"]
    hidden = ["--tp", "2", "--hf-token", HIDDEN, f"--api-key={HIDDEN}", "c", "--control-plane-api-keys", HIDDEN, HIDDEN]
    assert hide_arguments(given) == [*hidden, "--dtype", "f"]
    assert hide_arguments(hidden) == hidden


def test_a_written_configuration_has_names_only_and_loads_where_they_are_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is written: the file of a run, and the JSON that checkpoints and records are made of."""
    environment, arguments = "[FIRST=canary=1, SECOND=canary]", "[--tp, '2', --hf-token, canary]"
    config = load_config(QUICKSTART, [f"servers.environment={environment}", f"servers.arguments={arguments}"])
    assert config.servers.environment == ["FIRST=canary=1", "SECOND=canary"]
    text = dump_config(config)
    assert (
        "canary" not in text and "canary" not in config.model_dump_json() and "canary" not in str(config.model_dump())
    )
    assert yaml.safe_load(text)["servers"]["environment"] == ["FIRST", "SECOND"]
    (tmp_path / "config.yaml").write_text(text)
    again = load_config(tmp_path / "config.yaml")
    assert dump_config(again) == text

    monkeypatch.setenv("FIRST", "x")
    monkeypatch.delenv("SECOND", raising=False)
    problems = list(secret_problems(again.servers))
    assert len(problems) == 2
    assert problems[0].startswith("servers.environment: SECOND must be set where the run starts")
    assert problems[1].startswith("servers.arguments: run folders keep no keys and tokens: give the arguments again")
    monkeypatch.setenv("SECOND", "y")
    whole = load_config(tmp_path / "config.yaml", [f"servers.arguments={arguments}"])
    assert list(secret_problems(whole.servers)) == []

    (tmp_path / "private.yaml").write_text(dump_config(config, secrets=True))
    assert load_config(tmp_path / "private.yaml") == config


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({**EXTERNAL, "urls": ["http://me:canary@host:1"]}, "servers.urls: a URL with a user's name or password"),
        ({**EXTERNAL, "auxiliary_urls": ["http://canary@h:2"]}, "servers.auxiliary_urls: a URL with"),
        ({**EXTERNAL, "router": "http://u:canary@r:1"}, "servers.router: a URL with"),
        ({**EXTERNAL, "key_environment": "GONE"}, "servers.key_environment: GONE is not set"),
        ({"key_environment": "GONE"}, "servers.key_environment is for external servers"),
        ({"arguments": ["--api-key", "canary"]}, "servers.arguments: managed servers get the run's own random key"),
        ({"arguments": ["--admin-api-key=canary"]}, "servers.arguments: managed servers get the run's own random key"),
    ],
)  # fmt: skip
def test_what_would_be_written_or_is_missing_is_refused(
    settings: dict, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, which does not have the secret itself."""
    monkeypatch.delenv("GONE", raising=False)
    (found,) = secret_problems(Servers(**settings))
    assert found.startswith(problem) and "canary" not in found and "\n" not in found


def test_a_run_says_what_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    config = load_config(QUICKSTART, ["rollout.engine=sglang", "servers.environment=[MY_TOKEN]"])
    with pytest.raises(ConfigError, match=r"servers\.environment: MY_TOKEN must be set where the run starts"):
        check_config(config)
    with pytest.raises(ConfigError, match="'' is no name of an environment variable"):
        load_config(QUICKSTART, ["servers.environment=['=value']"])
