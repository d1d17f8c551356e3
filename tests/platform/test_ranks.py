"""Where process groups have their sockets."""

from __future__ import annotations

import os

import pytest

from bridge_mcore.errors import ConfigError
from bridge_mcore.platform.ranks import gloo_interface, is_loopback, joined, loopback_interface

NAME = "GLOO_SOCKET_IFNAME"


@pytest.mark.parametrize("before", [None, "eth7"])
def test_groups_of_one_host_are_on_loopback_and_others_never(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own choice counts for groups of several hosts, and is as it was afterwards."""
    if before is None:
        monkeypatch.delenv(NAME, raising=False)
    else:
        monkeypatch.setenv(NAME, before)
    with gloo_interface(local=False):
        assert os.environ.get(NAME) == before
    with pytest.raises(KeyError), gloo_interface(local=True):
        assert os.environ[NAME] == loopback_interface()
        with gloo_interface(local=False):  # weights for a server of another host, in a run that is on this one
            assert NAME not in os.environ
        assert os.environ[NAME] == loopback_interface()
        raise KeyError
    assert os.environ.get(NAME) == before


def test_addresses_of_this_host_alone() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "host", "127.0.0.1.example.org", "")))


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_an_environment_that_is_no_worlds_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(known, "0")
    assert joined()
    monkeypatch.setenv(name, "two")
    with pytest.raises(ConfigError, match=f"{name} is 'two', no number"):
        joined()
