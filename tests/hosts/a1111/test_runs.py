"""Runs in a real WebUI, on every checkpoint that is there: the laws of `laws.py`, which run in the WebUI's process."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("webui_tests", Path(__file__).with_name("conftest.py"))
around = importlib.util.module_from_spec(spec)
spec.loader.exec_module(around)

pytestmark = pytest.mark.skipif(bool(around.missing()), reason=around.missing() or "there is a WebUI")

LAWS = around.laws("laws.py")
# what could suffer where the host moves the model about or computes in half precision
MOVED = (
    "law_a_run_of_any_end_leaves_the_host_as_it_was",
    "law_previews_change_nothing_of_the_training",
    "law_the_saved_file_gives_the_live_networks_picture",
    "law_text_encoders_are_refused_where_they_are_moved_away",
)
# the host's own merged weights are rounded to 8 bits, so that a picture through the file is another
EIGHT_BITS = (
    "law_a_run_of_any_end_leaves_the_host_as_it_was",
    "law_previews_change_nothing_of_the_training",
    "law_captions_are_encoded_as_txt2img_encodes_plain_text",
)
MOVING = ["--no-half --medvram", "--no-half --lowvram"]


def half():
    """The option of half precision that works without a GPU too, where this version of the WebUI has it."""
    options = Path(around.os.environ.get("A1111_PATH") or "/nothing at all") / "modules/cmd_args.py"
    return ["--precision half"] if options.exists() and '"half"' in options.read_text(encoding="utf-8") else []


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("checkpoint", list(around.checkpoints()) or ["none"])
def test_a_law_holds(webui, checkpoint, law):
    wrong = webui.wrong(checkpoint, law, LAWS)
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.parametrize("law", MOVED)
@pytest.mark.parametrize("arguments", MOVING + half())
@pytest.mark.parametrize("checkpoint", [name for name in around.checkpoints() if not name.endswith("-v")] or ["none"])
def test_a_law_holds_however_the_host_keeps_the_model(webui, checkpoint, arguments, law):
    wrong = webui.wrong(checkpoint, law, MOVED, arguments)
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.parametrize("law", EIGHT_BITS)
@pytest.mark.parametrize("unet_only", ["", "1"], ids=["text too", "unet"])
@pytest.mark.parametrize("checkpoint", [n for n, (_, family) in around.checkpoints().items() if family == "sd1"][:1])
def test_a_law_holds_with_weights_of_8_bits(webui, checkpoint, unet_only, law):
    settings = {"A1111_SETTINGS": '{"fp8_storage": "Enable"}', "A1111_UNET_ONLY": unet_only}
    wrong = webui.wrong(checkpoint, law, EIGHT_BITS, **settings)
    assert not wrong, wrong
