"""Who reaches a WebUI."""

from types import SimpleNamespace

import pytest
from sd_atelier.scripts.webui.folders import listens_on_loopback_only


def options(**given):
    return SimpleNamespace(**{"share": False, "listen": False, "ngrok": None, "server_name": None, **given})


@pytest.mark.parametrize(
    "given", [{}, {"server_name": "127.0.0.1"}, {"server_name": "localhost"}, {"server_name": "::1"}]
)
def test_the_own_machine_alone_is_local(given):
    assert listens_on_loopback_only(options(**given))


@pytest.mark.parametrize(
    "given",
    [{"share": True}, {"listen": True}, {"ngrok": "token"}, {"server_name": "0.0.0.0"}, {"server_name": "my.host"}],
)
def test_whatever_can_be_reached_is_not_local(given):
    assert not listens_on_loopback_only(options(**given))
