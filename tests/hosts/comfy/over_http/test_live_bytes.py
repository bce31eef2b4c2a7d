"""What lives in the server's memory after a run is what lived there before it, however the run ended."""

import pytest
from comfy_client import COMFYUI, TINY, Graphs, Server


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """On a server that lets go of the outputs which the next prompt does not use; by default newer versions keep the
    outputs of prompts before, and with them the trained network, until memory is short."""
    if not COMFYUI.joinpath("main.py").is_file():
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    server = Server(tmp_path_factory.mktemp("comfyui"), "--disable-api-nodes", "--cache-classic").start()
    yield Graphs(server)
    server.stop()


def living(graphs, checkpoint):
    """(bytes, number of tensors by shape), with the checkpoint in ComfyUI's cache and nothing else in it."""
    graph, model, clip, vae = graphs.model(checkpoint)
    graph["8"] = {"class_type": "AtelierTestLive", "inputs": {"model": model, "clip": clip, "vae": vae}}
    about = graphs.server.run(graph)["8"]
    return about["num_bytes"][0], about["shapes"][0]


@pytest.mark.parametrize("checkpoint", [TINY, pytest.param("sd15-mini-tae", marks=pytest.mark.slow)])
@pytest.mark.parametrize("text_encoder", [False, True])
def test_live_tensor_bytes_are_what_they_were(graphs, drawn, checkpoint, text_encoder):
    if text_encoder and checkpoint == TINY:
        pytest.skip("its text encoder is a file of its own; the other checkpoint has one")

    server = graphs.server

    def train(how):
        graph = graphs.training(
            checkpoint,
            drawn,
            name=f"{checkpoint} {text_encoder} {how}",
            steps=1000 if how == "interrupt" else 4,
            preview_prompts="a toy",
            preview_every_steps=2,
        )
        graph["7"] = graphs.node("AtelierLora", rank=4, alpha=4.0, text_encoder=text_encoder)
        graph["3"]["inputs"]["lora"] = ["7", 0]
        if how in ("error", "out of memory"):
            graph["6"] = {"class_type": "AtelierTestFailing", "inputs": {"model": ["1", 0], "call": 7, "kind": how}}
            graph["3"]["inputs"]["model"] = ["6", 0]
        prompt = server.queue(graph)
        if how == "interrupt":
            server.until(lambda live: live.get("step", 0) >= 2)
            server.call("/interrupt", {})
        ended = dict(server.wait(prompt)["status"]["messages"])
        assert server.live()["step"] >= 2  # in the middle, after previews
        return ended

    assert "execution_success" in train("run to begin with")  # what is made once, such as tables of schedules
    before = living(graphs, checkpoint)
    assert before[0] > 10e6
    for how, ends in {
        "run": "execution_success",
        "interrupt": "execution_interrupted",
        "error": "execution_error",
        "out of memory": "execution_error",
    }.items():
        assert ends in train(how)
        assert living(graphs, checkpoint) == before, how
