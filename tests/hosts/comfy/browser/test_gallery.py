"""The gallery of a data set beside the canvas, in a real browser on a real server, with 1,000 pictures."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
LOCALES = Path(__file__).parents[4] / "locales"
HOSTILE = '<img src=x onerror="window.ran=1">, <script>window.ran=2</script>, <b>bold</b>, hat'
NUM = 1000


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A thousand pictures; of every second one the caption has a hat, one is damaged, one caption is hostile."""
    folder, rng = tmp_path_factory.mktemp("gallery") / "set <b>x", random.Random(1)
    folder.mkdir()
    for i in range(NUM):
        image = Image.new("RGB", rng.choice([(512, 512), (512, 768), (768, 512)]), f"hsl({i % 360}, 60%, 50%)")
        ImageDraw.Draw(image).text((40, 40), str(i), fill="black", font_size=200)
        image.save(folder / f"{i:04d}.{'jpg' if i % 3 else 'png'}")
        tags = [f"tag {number}" for number in rng.sample(range(200), 10)] + ["hat"] * (i % 2)
        (folder / f"{i:04d}.txt").write_text(", ".join(tags), "utf-8")
    (folder / "0003.txt").write_text(HOSTILE, "utf-8")
    (folder / "0004.jpg").write_bytes(b"no picture")
    return folder


def captions(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.txt"))}


@RENDERERS
def test_a_thousand_pictures_are_looked_through_and_edited_without_freezing_the_page(browse, pictures, vue, tmp_path):
    before = captions(pictures)
    seen = browse("gallery", vue=vue, folder=str(pictures), undo=True, pictures=str(tmp_path))
    print({name: value for name, value in seen.items() if name.endswith("Ms") or name == "numThumbnails"}, tmp_path)
    opened = seen["opened"]
    assert opened["counts"] == "1,000 pictures" and opened["error"] == ""
    assert opened["faulty"] == 1 and opened["loaded"] == opened["numCells"] - 1
    # only what can be seen is there, and what was scrolled past was not asked for
    assert max(opened["numCells"], seen["end"]["numCells"]) < 100 and seen["numThumbnails"] < 900
    assert seen["openedAfterMs"] < 15_000 and seen["endThereAfterMs"] < 15_000 and seen["longestPauseMs"] < 1000
    assert "" not in seen["end"]["captions"]

    # the tag that is most frequent: with it, and without it
    assert opened["chips"][0] == "hat500" and seen["withTag"]["counts"] == "500 of 1,000 pictures"
    assert seen["withoutTag"]["counts"] == "500 of 1,000 pictures"

    assert seen["hostile"]["counts"] == "1 of 1,000 pictures"
    assert seen["hostile"]["file"] == "0003.png"
    assert seen["hostile"]["caption"] == HOSTILE and seen["hostile"]["captions"] == [HOSTILE]
    assert seen["hostile"]["elements"] == 0 and seen["ran"] is None

    assert seen["saved"]["captions"] == ["a new caption, onerror"] and "Undo" in seen["saved"]["buttons"]
    assert seen["savedUndone"]["captions"] == [HOSTILE] and "Undo" not in seen["savedUndone"]["buttons"]
    assert any("Captions put back: 1" in toast for toast in seen["toasts"])

    assert seen["planned"]["message"] == "Captions that would change: 500 of 1,000."
    assert len(seen["planned"]["changes"]) == 201 and seen["planned"]["changes"][-1] == "and 300 more"
    assert seen["planned"]["changes"][0].startswith("0001.txt") and "<i>cap</i>" in seen["planned"]["changes"][0]
    assert "Write captions (500)" in seen["planned"]["buttons"]
    assert seen["applied"]["message"] == "Captions written: 500" and "Undo" in seen["applied"]["buttons"]
    assert "<i>cap</i>" in " ".join(seen["applied"]["captions"]) and seen["applied"]["elements"] == 0
    assert "<i>cap</i>" not in " ".join(seen["undone"]["captions"])
    assert captions(pictures) == before


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_the_gallery_speaks_the_language_of_the_page(browse, pictures, language):
    seen = browse("galleryAgain", folder=str(pictures), locale=language)
    text = json.loads((LOCALES / language / "main.json").read_text("utf-8"))["atelier"]["gallery"]
    assert seen["after"]["counts"] == text["all_pictures"].replace("{count}", "1,000")
    assert {text["open"], text["save"], text["revert"]} <= set(seen["after"]["buttons"])


@RENDERERS
def test_closing_the_tab_loses_nothing_that_was_typed(browse, pictures, vue):
    before = captions(pictures)
    seen = browse("galleryAgain", folder=str(pictures), vue=vue)
    assert seen["isGone"]
    assert seen["after"]["caption"] == seen["before"]["caption"] == "not saved yet"
    assert seen["after"]["file"] == seen["before"]["file"] and seen["after"]["loaded"] == seen["before"]["loaded"]
    assert not [name for inputs in seen["inputs"] for name in inputs if name.startswith("atelier")]
    assert captions(pictures) == before


@pytest.mark.parametrize(("folder", "said"), [("/nothing/there", "there is no folder"), ("<b>x</b>", "<b>x</b>")])
def test_a_folder_that_cannot_be_opened_is_said_in_words(browse, folder, said):
    seen = browse("galleryFault", folder=folder)
    assert said in seen["error"] and seen["numCells"] == 0 and seen["elements"] == 0
