"""Which folders a graph or a page may name: below a root, or any while only this machine can ask."""

import json
import os

import pytest
from sd_atelier.lib.named_folders import existing_folder, new_folder, roots_in, unquoted


@pytest.fixture
def places(tmp_path):
    """Two roots with a folder each, a folder outside, and a link to it inside."""
    for name in ("in/toys", "out/toys", "out/runs", "elsewhere/private"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "in" / "file.txt").write_text("x", "utf-8")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    return tmp_path


def named(places, text, any_absolute=False, folder=existing_folder):
    return folder(text, [places / "in", places / "out"], any_absolute, places / "atelier.json", "the setting")


def test_a_relative_name_is_that_of_the_first_root_that_has_it(places):
    assert named(places, "toys") == (places / "in" / "toys").resolve()
    assert named(places, "runs") == (places / "out" / "runs").resolve()


def test_quotes_and_space_around_a_path_are_taken_off(places):
    for text in (f'"{places / "in" / "toys"}"', f" '{places / 'in' / 'toys'}' ", "  toys "):
        assert named(places, text) == (places / "in" / "toys").resolve()
    assert unquoted('"') == '"'
    assert unquoted('"D:\\a b"') == unquoted(" D:\\a b ") == "D:\\a b"


def test_who_is_elsewhere_is_not_told_where_the_home_folder_is(places):
    with pytest.raises(ValueError) as refused:
        named(places, "~")
    assert os.path.expanduser("~") not in str(refused.value)


def test_a_new_folder_may_be_missing_and_may_not_be_a_file(places):
    assert named(places, "new/one", folder=new_folder) == (places / "in/new/one").resolve()
    assert named(places, "toys", folder=new_folder) == (places / "in/toys").resolve()
    with pytest.raises(ValueError, match="is a file"):
        named(places, "file.txt", folder=new_folder)


@pytest.mark.parametrize(
    "text",
    ["../elsewhere", "link", "link/private", "toys/../../elsewhere", "{}/elsewhere", "/", "/etc"],
)
@pytest.mark.parametrize("folder", [existing_folder, new_folder])
def test_nothing_outside_the_roots_is_reached_from_elsewhere(places, text, folder):
    text = text.format(places)
    with pytest.raises(ValueError, match=r"the setting.* may not be used") as refused:
        named(places, text, folder=folder)
    # the line that would allow it can be pasted as it is
    settings = places / "atelier.json"
    assert str(settings) in str(refused.value)
    settings.write_text(str(refused.value).rpartition("runs on: ")[2], "utf-8")
    (root,) = roots_in(settings)
    assert folder(str(root), [root], False, settings, "the setting") == root


@pytest.mark.parametrize("text", ["../elsewhere", "link", "{}/elsewhere"])
def test_any_folder_may_be_named_while_only_this_machine_can_ask(places, text):
    assert named(places, text.format(places), any_absolute=True) == (places / "elsewhere").resolve()


def test_whether_something_is_there_is_not_told_of_what_may_not_be_used(places):
    def refusal(name):
        with pytest.raises(ValueError) as refused:
            named(places, str(places / "elsewhere" / name))
        return str(refused.value).replace(name, "NAME")

    assert refusal("private") == refusal("nothing")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ('""', "is empty"),
        ("nothing", "there is no folder"),
        ("file.txt", "is a file"),
        ("a\0b", "not the name"),
        ("x" * 5000, "not the name"),
    ],
)
def test_what_is_no_folder_is_said(places, text, sentence):
    for any_absolute in (False, True):
        with pytest.raises(ValueError, match=f"the setting.*{sentence}"):
            named(places, text, any_absolute)


def test_the_settings_file_names_absolute_roots_or_is_refused(tmp_path):
    path = tmp_path / "atelier.json"
    assert roots_in(path) == []
    path.write_text(json.dumps({"roots": [str(tmp_path)]}), "utf-8-sig")
    assert roots_in(path) == [tmp_path]
    for wrong in ("{", "[]", "{}", '{"roots": "x"}', '{"roots": ["relative"]}'):
        path.write_text(wrong, "utf-8")
        with pytest.raises(ValueError, match=r"atelier\.json"):
            roots_in(path)
