"""Who may use our routes: the page, which the host's own login guards, and whoever may use the host's API.

The page carries a key that changes at each start; it is sent as a header, so another site can neither read nor send
it. Without the key the rules are those of the host's API: it has to be turned on, and its user names and passwords
count. What changes something also has to come from the page's own origin, as JSON.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

KEY_HEADER = "x-atelier-key"


class RefusedError(Exception):
    """A request that may not be served; `status` is the HTTP status."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status
        super().__init__(sentence)


def check_access(headers: Mapping[str, str], key: str, cmd_opts: Any, has_login: bool) -> None:
    """Whether the sender may use our routes at all. Errors: `RefusedError`."""
    if secrets.compare_digest(headers.get(KEY_HEADER, "").encode(), key.encode()):
        return
    if not (getattr(cmd_opts, "api", False) or getattr(cmd_opts, "nowebui", False)):
        raise RefusedError(401, "the API is not turned on; start the WebUI with --api, or use its page")
    accounts = _accounts(getattr(cmd_opts, "api_auth", None))
    if not accounts and has_login:
        raise RefusedError(401, "the page has a login and the API has none; start the WebUI with --api-auth too")
    if accounts and not _is_account(headers.get("authorization", ""), accounts):
        raise RefusedError(401, "wrong user name or password for the API (--api-auth)")


def check_change(headers: Mapping[str, str]) -> None:
    """Whether a request that changes something is one that another site cannot send. Errors: `RefusedError`."""
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "send JSON, with the content type application/json")
    origin = headers.get("origin")
    # programs that are no browsers send none
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise RefusedError(403, "this was sent from the page of another site")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise RefusedError(403, "this was sent from the page of another site")


def _accounts(api_auth: str | None) -> dict[str, str]:
    pairs = [pair.partition(":") for pair in (api_auth or "").split(",") if ":" in pair]
    return {user.strip(): password.strip() for user, _, password in pairs}


def _is_account(authorization: str, accounts: Mapping[str, str]) -> bool:
    kind, _, encoded = authorization.partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    known = accounts.get(user)
    return known is not None and secrets.compare_digest(known.encode(), password.encode())
