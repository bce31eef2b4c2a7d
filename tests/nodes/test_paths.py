"""Whom a ComfyUI listens to."""

import pytest
from sd_atelier.nodes.paths import listens_on_loopback_only


@pytest.mark.parametrize(
    ("listen", "own"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1,::1", True),
        ("localhost", True),
        ("127.2.2.2, 127.3.3.3", True),
        ("0.0.0.0", False),
        ("0.0.0.0,::", False),
        ("127.0.0.1,192.168.1.5", False),
        ("host.example", False),
        ("", False),
    ],
)
def test_only_addresses_of_this_machine_are_its_own(listen, own):
    assert listens_on_loopback_only(listen) == own
