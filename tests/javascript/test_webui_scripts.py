"""The scripts of the WebUI's page: they can be read, stay in one name, and never turn text into markup."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "javascript").glob("*.js"))
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|createContextualFragment"
)
# a report is shown in a frame that may do nothing
FRAME = re.compile(r"srcdoc")


def test_there_are_scripts():
    assert len(SCRIPTS) > 5


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_text_of_others_never_becomes_markup(path):
    source = path.read_text(encoding="utf-8")
    assert not MARKUP.search(source)
    for line in source.splitlines():
        if FRAME.search(line):
            assert 'sandbox: ""' in line


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_puts_nothing_but_its_one_name_into_the_page(path):
    outside = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] not in " /})"]
    assert outside == ["window.atelier = window.atelier || {};", "(function(atelier) {"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_script_can_be_read(path):
    read = subprocess.run(["node", "--check", str(path)], capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
