"""Which folders a page of the WebUI may name."""

import json
from types import SimpleNamespace

import pytest
from sd_atelier.scripts.webui.folders import listens_on_loopback_only, resolve, roots_in, unquoted


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


@pytest.fixture
def places(tmp_path):
    for name in ("root/toys", "outside/secret"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root/file.txt").write_text("x")
    return tmp_path


def test_absolute_folders_are_accepted_where_nobody_else_gets_in(places):
    text = f' "{places / "outside"}" '
    assert resolve(text, [places / "root"], True, places / "s.json", "folder") == places / "outside"


@pytest.mark.parametrize("text", ["../outside", "toys/../../outside/secret", "{places}/outside", "~", "../missing"])
def test_elsewhere_a_folder_outside_the_roots_is_refused_with_the_line_that_allows_it(places, text):
    text = text.format(places=places)
    settings = places / "atelier.json"
    with pytest.raises(ValueError) as refused:
        resolve(text, [places / "root"], False, settings, "data.concepts[0].folder")
    sentence = str(refused.value)
    if text == "~":
        return
    assert sentence.startswith("data.concepts[0].folder") and str(settings) in sentence
    line = sentence[sentence.index('{"roots"') :]
    settings.write_text(line, encoding="utf-8")
    allowed = roots_in(settings)
    if "missing" not in text:
        assert resolve(str(allowed[0]), [places / "root", *allowed], False, settings, "folder") == allowed[0]


def test_a_link_out_of_a_root_is_outside(places):
    (places / "root/link").symlink_to(places / "outside")
    with pytest.raises(ValueError, match="other machines"):
        resolve("link", [places / "root"], False, places / "s.json", "folder")


@pytest.mark.parametrize("text", ["", '""', "file.txt", "no such", "a\0b", "x" * 5000])
def test_what_is_no_folder_is_refused_by_name(places, text):
    with pytest.raises(ValueError, match="the setting"):
        resolve(text, [places / "root"], True, places / "s.json", "the setting")


@pytest.mark.parametrize("content", ["{", "[]", '{"roots": "a"}', '{"roots": ["relative"]}', "{}"])
def test_a_settings_file_that_is_none_is_named(tmp_path, content):
    (tmp_path / "atelier.json").write_text(content)
    with pytest.raises(ValueError, match=r"atelier\.json"):
        roots_in(tmp_path / "atelier.json")


@pytest.mark.parametrize("text", ['"D:\\a b"', " D:\\a b ", "'D:\\a b'"])
def test_quotes_of_copy_as_path_are_taken_off(text):
    assert unquoted(text) == "D:\\a b"


def test_the_roots_survive_json(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"roots": [str(tmp_path)]}), encoding="utf-8-sig")
    assert roots_in(tmp_path / "s.json") == [tmp_path]
