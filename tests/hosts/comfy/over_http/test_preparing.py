"""What a page is told before step 0, and what a stop or a cancel does there."""

import pytest
from comfy_client import TINY
from PIL import Image


@pytest.fixture
def many(tmp_path):
    """Pictures that take a while to encode."""
    for number in range(150):
        Image.effect_noise((256, 256), 60).convert("RGB").save(tmp_path / f"{number:03}.png")
    return tmp_path


@pytest.mark.parametrize("how", ["stop", "interrupt"])
def test_a_stop_while_pictures_are_encoded_is_one_sentence_and_keeps_them(server, graphs, many, how):
    prompt = server.queue(graphs.training(TINY, many, name=f"encoding {how}", resolution=256))
    server.until(lambda live: "encode" in live["message"])
    server.call("/atelier/runs/node:3/stop" if how == "stop" else "/interrupt", {})
    ended = dict(server.wait(prompt)["status"]["messages"])
    if how == "stop":
        said = "stopped while the pictures were encoded; what is encoded is kept"
        assert ended["execution_error"]["exception_message"].strip() == said
        assert (server.live()["state"], server.live()["message"]) == ("failed", said)
    else:
        assert "execution_interrupted" in ended
        assert server.live()["state"] == "interrupted"
    assert not (server.output / "atelier" / f"encoding {how}").exists()


def test_what_is_done_before_step_0_is_not_said_any_more_when_training_begins(server, graphs, drawn):
    prompt = server.queue(graphs.training(TINY, drawn, name="message", steps=2000, save_every_steps=0))
    live = server.until(lambda live: live["state"] == "running")
    assert live["message"] == ""
    server.call("/atelier/runs/node:3/stop", {})
    server.wait(prompt)
