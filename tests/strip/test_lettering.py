"""Text never grows wider than its room."""

from __future__ import annotations

import pytest
from PIL import ImageFont
from sd_atelier.lib.strip import lettering as strip

FONTS = [strip.font(16), strip.font(16, True), ImageFont.load_default()]
if hasattr(ImageFont, "load_default_imagefont"):  # the bitmap font, all there is before Pillow 10.1
    FONTS.append(ImageFont.load_default_imagefont())


@pytest.mark.parametrize("font", FONTS, ids=range(len(FONTS)))
@pytest.mark.parametrize("width", [0, 1, 20, 90, 300])
@pytest.mark.parametrize(
    "text", ["", "a", "a-very-long-run-name-" * 9, "日本語のとても長い名前" * 5, "tab\tnul\0bell\a", "é" * 5000]
)
def test_text_never_grows_wider_than_its_room(text, width, font):
    for front in (False, True):
        cut = strip.ellipsis(text, width, font, front=front)
        assert font.getlength(cut) <= width
    if width >= 90:
        lines = strip.wrapped(text, width, font, 3)
        assert len(lines) <= 3 and all(font.getlength(line) <= width for line in lines)


def test_front_is_cut_and_the_end_is_kept():
    cut = strip.ellipsis("a-very-long-run-name-", 90, strip.font(15), front=True)
    assert cut.startswith("…") and cut.endswith("name-")


def test_wrapped_text_is_whole_where_it_fits():
    font = strip.font(15)
    words = "a photo of zwx monster toy on the beach, in the sun, with a towel"
    lines = strip.wrapped(words, 250, font, 3)
    assert len(lines) > 1 and " ".join(lines) == words
    assert strip.wrapped(words * 20, 250, font, 3)[-1].endswith("…")
