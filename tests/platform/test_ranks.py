"""Where process groups have their sockets."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from bridge_mcore.errors import ConfigError
from bridge_mcore.platform.ranks import gloo_interface, is_loopback, joined, loopback_interface, own_address
from bridge_mcore.rollout.remote.build import EngineRoom

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


def test_the_address_of_this_host_is_that_of_the_way_to_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a local run rank 0 is on loopback, where no server of another host can come to."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert own_address() == own_address("127.0.0.1") == "127.0.0.1"
    found = [a.address for part in psutil.net_if_addrs().values() for a in part if a.family == socket.AF_INET]
    outside = [address for address in found if not address.startswith("127.")]
    if not outside:
        pytest.skip("this host has a loopback interface only")
    assert own_address(outside[0]) == outside[0]

    def address(*urls: str) -> str:
        return EngineRoom._address(SimpleNamespace(fleets=[SimpleNamespace(urls=urls)]))  # type: ignore[arg-type]

    assert address("http://127.0.0.1:1", "http://localhost:2", "http://[::1]:3") == "127.0.0.1"
    assert address("http://127.0.0.1:1", f"http://{outside[0]}:2") == outside[0]


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_an_environment_that_is_no_worlds_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(known, "0")
    assert joined()
    monkeypatch.setenv(name, "two")
    with pytest.raises(ConfigError, match=f"{name} is 'two', no number"):
        joined()
