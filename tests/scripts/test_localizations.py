"""Every word of the WebUI's page has a translation, with the same places to fill in."""

import json
import re
from pathlib import Path

import pytest
from sd_atelier.lib.config import RunConfig
from sd_atelier.lib.data.image_steps import STEPS
from sd_atelier.lib.data.tag_edits import EDITS
from sd_atelier.lib.data.tagger import TaggingConfig
from sd_atelier.lib.forms import form
from sd_atelier.lib.verdicts import WORDS

ROOT = Path(__file__).parents[2]
LANGUAGES = ("ja_JP", "zh_CN")
STRING = r'"((?:[^"\\]|\\.)+)"'
NOT_HERE = ("loop.base_storage", "loop.cpu_blocks")
# the same in every language
SAME = {"Ctrl+Enter", "Alpha", "Beta1", "Beta2", "Eps", "Huber delta", "T5"}


def of_the_settings():
    widgets = [w for group in form(RunConfig) for w in group.widgets if w.path not in NOT_HERE]
    return {text for widget in widgets for text in (widget.label, widget.help)}


def of_the_data_set():
    """What the page of a data set builds from declarations: edits, steps and their settings."""
    widgets = [w for kind in (*STEPS.values(), TaggingConfig) for group in form(kind) for w in group.widgets]
    edits = {text for kind in EDITS.values() for text in (kind.help, kind.needs) if text}
    steps = {" ".join(kind.__doc__.split("\n\n")[0].split()) for kind in STEPS.values()}
    return {text for widget in widgets for text in (widget.label, widget.help)} | edits | steps


def of_the_scripts():
    """What the scripts say: what is given to t() and to buttons, and the tables of words that are looked up later."""
    found = set()
    for path in sorted((ROOT / "javascript").glob("*.js")):
        source = path.read_text(encoding="utf-8")
        calls = [
            rf"\bt\(\s*{STRING}",
            rf"atelier\.button\(\s*{STRING}",
            rf"act\([^,]+,[^,]+,\s*{STRING}",
            rf"\btitle: {STRING}",
        ]
        calls += [rf"\badd: {STRING}", rf"trains \? {STRING}"]
        found |= {match[1] for call in calls for match in re.finditer(call, source)}
        for table in re.findall(r"const (?:PHASES|TABS|labels|titles) = \{(.*?)\};", source, re.DOTALL):
            found |= set(re.findall(rf": {STRING}", table))
        for head in re.findall(r"\[([^\]]*)\]\.map\(\(h, i\)", source):
            found |= set(re.findall(STRING, head.replace('""', "")))
    return {json.loads(f'"{text}"') for text in found} - {"", "M", "text", "true"}


def of_the_summary():
    source = (ROOT / "scripts/webui/catalogue.py").read_text(encoding="utf-8")
    return set(re.findall(rf"\({STRING}, ", source.partition("def _summary")[2].partition("def ")[0]))


def of_the_verdicts():
    return set(WORDS.values())


def of_the_host_settings():
    source = (ROOT / "scripts/webui/settings.py").read_text(encoding="utf-8")
    labels = re.findall(rf'OptionInfo\(\s*(?:""|True), {STRING}', source)
    notes = [f"({text})" for text in re.findall(rf"\.info\(\s*{STRING}", source)]
    assert len(labels) == len(notes) == 4
    return {*labels, *notes}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "words", [of_the_settings, of_the_data_set, of_the_scripts, of_the_summary, of_the_verdicts, of_the_host_settings]
)
def test_every_word_of_the_page_is_translated(language, words):
    known = json.loads((ROOT / f"localizations/{language}.json").read_text(encoding="utf-8"))
    wanted = words()
    assert len(wanted) > 3
    assert sorted(wanted - known.keys() - SAME) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_fill_in_the_same_values(language):
    known = json.loads((ROOT / f"localizations/{language}.json").read_text(encoding="utf-8"))
    for english, translated in known.items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", translated)), english


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_translation_is_left_over(language):
    known = json.loads((ROOT / f"localizations/{language}.json").read_text(encoding="utf-8"))
    used = (
        of_the_settings()
        | of_the_data_set()
        | of_the_scripts()
        | of_the_summary()
        | of_the_verdicts()
        | of_the_host_settings()
    )
    said = {"no network", "high", "low", "few rows", "not finite", "Start", "Train", "Runs", "Strips"}
    assert sorted(known.keys() - used - said) == []
