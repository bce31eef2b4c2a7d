"""Who may use the routes in the WebUI, without a WebUI."""

import base64
from types import SimpleNamespace

import pytest
from sd_atelier.scripts.webui.access import RefusedError, check_access, check_change

KEY = "the page's key"


def options(**given):
    return SimpleNamespace(**{"api": False, "api_auth": None, **given})


def basic(account):
    return {"authorization": "Basic " + base64.b64encode(account.encode()).decode()}


@pytest.mark.parametrize("given", [options(), options(api=True, api_auth="a:b")])
@pytest.mark.parametrize("has_login", [False, True])
def test_the_page_may_ask_whatever_the_api_may(given, has_login):
    check_access({"x-atelier-key": KEY}, KEY, given, has_login)


@pytest.mark.parametrize(
    "headers, given, has_login",
    [
        ({}, options(), False),
        ({"x-atelier-key": ""}, options(), False),
        ({"x-atelier-key": "another"}, options(), False),
        ({}, options(api=True, api_auth="a:b"), False),
        (basic("a:c"), options(api=True, api_auth="a:b"), False),
        (basic("c:b"), options(api=True, api_auth="a:b"), False),
        ({"authorization": "Basic ###"}, options(api=True, api_auth="a:b"), False),
        ({"authorization": "Bearer " + KEY}, options(api=True, api_auth="a:b"), False),
        # the page has a login, so the routes are not open beside it
        ({}, options(api=True), True),
    ],
)
def test_others_are_refused(headers, given, has_login):
    with pytest.raises(RefusedError) as refused:
        check_access(headers, KEY, given, has_login)
    assert refused.value.status == 401


def test_the_api_is_open_as_the_hosts_own_is():
    check_access({}, KEY, options(api=True), False)
    check_access(basic("a:b:c"), KEY, options(api=True, api_auth="d:e,a:b:c"), True)


JSON = {"content-type": "application/json; charset=utf-8", "host": "localhost:7860"}


@pytest.mark.parametrize(
    "headers", [JSON, {**JSON, "origin": "http://LOCALHOST:7860"}, {**JSON, "sec-fetch-site": "same-origin"}]
)
def test_a_change_from_the_own_page_or_a_program_passes(headers):
    check_change(headers)


@pytest.mark.parametrize(
    "changed",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": ""},
        {"origin": "http://localhost"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_change_that_another_site_could_send_is_refused(changed):
    with pytest.raises(RefusedError):
        check_change({**JSON, **changed})
