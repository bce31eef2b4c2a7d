"""Training in the graph: what comes out, what is left behind, and what a page may ask meanwhile."""

import json

import numpy as np
import pytest
from comfy_client import TINY, Failed, Refused
from safetensors import safe_open

HASH = {"class_type": "AtelierTestHash"}


def hashed(graphs, checkpoint):
    """What the model of a checkpoint, its CLIP and its VAE hash to now, and a picture at a fixed seed."""
    graph, model, clip, vae = graphs.model(checkpoint)
    # it never fails here, and as it is run each time, nothing below it comes from ComfyUI's cache
    graph["6"] = {"class_type": "AtelierTestFailing", "inputs": {"model": model, "call": 10**9, "kind": "error"}}
    graph = graphs.picture(graph, checkpoint, ["6", 0], clip, vae, prefix=f"{checkpoint}-hashed")
    graph["8"] = {**HASH, "inputs": {"model": ["6", 0], "clip": clip, "vae": vae, "salt": 0, "after": ["14", 0]}}
    outputs = graphs.server.run(graph)
    return outputs["8"]["hash"][0], outputs["8"]["num_bytes"][0], graphs.server.image(outputs, "15")


def run_folder(server, name):
    return server.output / "atelier" / name


def network(folder):
    """The newest network of a run: name -> bytes."""
    path = sorted((folder / "checkpoints").glob("*.safetensors"))[-1]
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def losses(folder):
    return (folder / "loss.csv").read_text("utf-8")


def executed_again(server, graph):
    """What the train node says when it is run again although ComfyUI still has its outputs: evicted or not, another
    number of kept checkpoints is another input, and no other run."""
    graph["3"]["inputs"]["save_keep_last"] += 100
    return server.run(graph)["3"]["atelier"][0]


def test_a_run_gives_a_network_that_core_loads_with_every_key_and_the_picture_of_the_live_one(server, graphs, drawn):
    graph = graphs.training(
        TINY, drawn, name="whole", preview_prompts="a toy", preview_every_steps=4, steps=4, save_every_steps=4
    )
    outputs = server.run(graph)
    (about,) = outputs["3"]["atelier"]
    assert about["state"] == "finished"
    assert about["step"] == 4
    assert about["file"] in server.call("/models/loras")
    log = len((server.folder / "log").read_bytes())
    graph, model, clip, vae = graphs.model(TINY)
    graph["7"] = graphs.node(
        "LoraLoader", model=model, clip=clip, lora_name=about["file"], strength_model=1.0, strength_clip=1.0
    )
    graph = graphs.picture(graph, TINY, ["7", 0], ["7", 1], vae, prompt="a toy", prefix="loaded")
    loaded = server.image(server.run(graph), "15")
    said = (server.folder / "log").read_bytes()[log:].decode("utf-8", "replace")
    assert "NOT LOADED" not in said
    assert "lora key not loaded" not in said
    (preview,) = (run_folder(server, "whole") / "previews").glob("000004-1-*.png")
    from PIL import Image

    live = np.asarray(Image.open(preview).convert("RGB"))
    assert np.abs(live.astype(int) - loaded.astype(int)).max() <= 1
    base, *_ = (run_folder(server, "whole") / "previews").glob("000000-1-*.png")
    assert np.abs(np.asarray(Image.open(base).convert("RGB")).astype(int) - live.astype(int)).max() > 0


def test_the_trained_model_goes_on_in_the_same_graph(server, graphs, drawn):
    graph = graphs.training(TINY, drawn, name="at-once")
    graph = graphs.picture(graph, TINY, ["3", 0], ["3", 1], ["1", 2], prefix="at-once")
    graph["20"] = {"class_type": "SaveLoRA", "inputs": {"lora": ["3", 2], "prefix": "loras/by-core", "steps": 4}}
    graph["21"] = {"class_type": "LossGraphNode", "inputs": {"loss": ["3", 3], "filename_prefix": "loss"}}
    graph["22"] = graphs.node("AtelierLossReport", run=["3", 4])
    graph["23"] = graphs.node("AtelierSaveLora", run=["3", 4], name="friendly", title="A toy", trigger="sks")
    graph["24"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 5]}}
    outputs = server.run(graph)
    assert {"15", "21", "22", "23", "24"} <= set(outputs)
    assert list((server.output / "loras").glob("by-core*.safetensors"))
    assert (run_folder(server, "at-once") / "report.html").is_file()
    with safe_open(str(server.output / "loras" / "friendly.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "A toy"
    assert metadata["ss_output_name"] == "friendly"


def test_what_did_not_change_is_there_at_once_and_what_did_begins_anew(server, graphs, drawn):
    graph = graphs.training(TINY, drawn, name="again")
    server.run(graph)
    written = losses(run_folder(server, "again"))
    about = executed_again(server, graph)
    assert about["state"] == "restored"
    assert losses(run_folder(server, "again")) == written
    first = about["file"]
    graph["3"]["inputs"]["seed"] = 5
    outputs = server.run(graph)
    assert outputs["3"]["atelier"][0]["run"] == "again-2"
    assert outputs["3"]["atelier"][0]["file"] != first
    (drawn / "0.txt").write_text("a toy, number 0, on a shelf", "utf-8")
    try:
        assert server.run(graph)["3"]["atelier"][0]["run"] == "again-3"
    finally:
        (drawn / "0.txt").write_text("a toy, number 0, on a table", "utf-8")
    assert losses(run_folder(server, "again")) == written


@pytest.mark.parametrize("checkpoint", [TINY, pytest.param("sd15-mini-tae", marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["run", "interrupt", "error", "out of memory"])
def test_the_host_is_as_it_was(server, graphs, drawn, how, checkpoint):
    before = hashed(graphs, checkpoint)
    name = f"{checkpoint} after {how}"
    graph = graphs.training(checkpoint, drawn, name=name, steps=1000 if how == "interrupt" else 4)
    if how in ("error", "out of memory"):
        graph["6"] = {"class_type": "AtelierTestFailing", "inputs": {"model": ["1", 0], "call": 3, "kind": how}}
        graph["3"]["inputs"]["model"] = ["6", 0]
    prompt = server.queue(graph)
    if how == "interrupt":
        server.until(lambda live: live.get("step", 0) >= 2)
        server.call("/interrupt", {})
    entry = server.wait(prompt)
    ended = dict(entry["status"]["messages"])
    folder = run_folder(server, name)
    if how == "run":
        assert entry["status"]["status_str"] == "success"
    elif how == "interrupt":
        assert "execution_interrupted" in ended
        assert server.live()["state"] == "interrupted"
        assert network(folder)
    else:
        assert ("as it was told to" in ended["execution_error"]["exception_message"]) == (how == "error")
        if how == "out of memory":
            assert "out of memory in step" in ended["execution_error"]["exception_message"]
        assert network(folder)
    now = hashed(graphs, checkpoint)
    assert now[:2] == before[:2]
    assert np.array_equal(now[2], before[2])


def test_an_interrupted_run_goes_on_where_it_stopped_when_it_is_queued_again(server, graphs, drawn):
    whole = graphs.training(TINY, drawn, name="uncut", steps=12, save_every_steps=0)
    server.run(whole)
    graph = graphs.training(TINY, drawn, name="cut", steps=12, save_every_steps=0)
    graph["6"] = {"class_type": "AtelierTestFailing", "inputs": {"model": ["1", 0], "call": 6, "kind": "error"}}
    graph["3"]["inputs"]["model"] = ["6", 0]
    with pytest.raises(Failed, match="as it was told to"):
        server.run(graph)
    graph["3"]["inputs"]["model"] = ["1", 0]
    del graph["6"]
    assert server.run(graph)["3"]["atelier"][0]["run"] == "cut"
    assert losses(run_folder(server, "cut")) == losses(run_folder(server, "uncut"))
    assert network(run_folder(server, "cut")) == network(run_folder(server, "uncut"))


def test_stop_save_sample_and_pause_act_within_one_step(server, graphs, drawn):
    graph = graphs.training(
        TINY, drawn, name="asked", steps=5000, save_every_steps=0, preview_prompts="a toy", preview_every_steps=0
    )
    graph = graphs.picture(graph, TINY, ["3", 0], ["3", 1], ["1", 2], prefix="asked")
    prompt = server.queue(graph)
    server.until(lambda live: live.get("step", 0) >= 2)
    saved = server.live()["saved_step"]
    server.call("/atelier/runs/node:3/pause", {})
    paused = server.until(lambda live: live.get("note") == "paused")
    assert server.until(lambda live: True)["state"] == "paused"
    server.call("/atelier/runs/node:3/save", {})
    live = server.until(lambda live: live["saved_step"] != saved)
    assert live["saved_step"] == live["step"] == paused["step"]
    server.call(f"/atelier/runs/{live['run']}/sample", {})
    previews = run_folder(server, "asked") / "previews"
    server.until(lambda live: any(previews.glob(f"{paused['step']:06d}-1-*.png")))
    server.call("/atelier/runs/node:3/go_on", {})
    server.until(lambda live: live["step"] > paused["step"])
    step = server.live()["step"]
    server.call("/atelier/runs/node:3/stop", {})
    entry = server.wait(prompt)
    assert entry["status"]["status_str"] == "success"
    assert "15" in entry["outputs"]  # what follows in the graph ran
    (about,) = entry["outputs"]["3"]["atelier"]
    assert about["state"] == "stopped"
    # some steps pass between asking for the number and asking for the stop
    assert step <= about["step"] < step + 60
    with pytest.raises(Refused) as refused:
        server.call("/atelier/runs/node:3/stop", {})
    assert refused.value.status == 409
    # queued again it goes on, although no input changed
    prompt = server.queue(graph)
    server.until(lambda live: live.get("step", 0) > about["step"])
    assert server.live()["first_step"] == about["step"]
    server.call("/atelier/runs/node:3/stop", {})
    server.wait(prompt)


@pytest.mark.slow
def test_a_killed_server_goes_on_bit_for_bit(fresh, server, drawn):
    from comfy_client import Graphs

    whole = Graphs(server).training(TINY, drawn, name="not-killed", steps=300, save_every_steps=20)
    server.run(whole)
    fresh.start()
    graph = Graphs(fresh).training(TINY, drawn, name="killed", steps=300, save_every_steps=20)
    fresh.queue(graph)
    fresh.until(lambda live: (live.get("saved_step") or 0) >= 20 and live["step"] % 20 > 5)
    fresh.kill()
    left = len(losses(run_folder(fresh, "killed")).splitlines())
    fresh.start()
    assert fresh.run(graph)["3"]["atelier"][0] == {
        "run": "killed",
        "folder": str(run_folder(fresh, "killed")),
        "state": "finished",
        "step": 300,
        "file": "killed.safetensors",
    }
    assert left < 301
    assert losses(run_folder(fresh, "killed")) == losses(run_folder(server, "not-killed"))
    assert network(run_folder(fresh, "killed")) == network(run_folder(server, "not-killed"))


def test_latents_of_the_graph_train_and_go_on(server, graphs, drawn):
    graph, _, clip, vae = graphs.model(TINY)
    graph["5"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0x336699}}
    graph["6"] = {"class_type": "MakeTrainingDataset", "inputs": {"images": ["5", 0], "vae": vae, "clip": clip}}
    graph["2"] = graphs.node("AtelierDatasetLatents", latents=["6", 0], conditioning=["6", 1])
    graph["3"] = graphs.training(TINY, drawn, name="latents")["3"]
    del graph["3"]["inputs"]["vae"]
    assert server.run(graph)["3"]["atelier"][0]["state"] == "finished"
    assert executed_again(server, graph)["state"] == "restored"


def test_images_of_the_graph_are_written_once_and_train(server, graphs, drawn):
    graph = graphs.training(TINY, drawn, name="images")
    image = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 96, "batch_size": 2, "color": 0x993311}}
    graph["5"] = image
    graph["2"] = graphs.node("AtelierDatasetImages", images=["5", 0], name="drawn", trigger="sks")
    assert server.run(graph)["3"]["atelier"][0]["state"] == "finished"
    (folder,) = (server.output / "atelier" / "pictures").glob("drawn-*")
    assert len(list(folder.glob("*.png"))) == 2
    assert executed_again(server, graph)["state"] == "restored"


def test_a_fork_goes_on_from_a_checkpoint_at_another_rate(server, graphs, drawn):
    server.run(graphs.training(TINY, drawn, name="source", steps=4, save_every_steps=2))
    graph = graphs.training(TINY, drawn, name="branch", steps=8, resume="fork")
    graph["5"] = graphs.node("AtelierRun", run="source", step=2)
    graph["6"] = graphs.node("AtelierSchedule", schedule="1e-5")
    graph["3"]["inputs"] |= {"run": ["5", 0], "schedule": ["6", 0]}
    outputs = server.run(graph)
    assert outputs["3"]["atelier"][0]["step"] == 8
    about = json.loads((run_folder(server, "branch") / "run.json").read_text("utf-8"))
    assert about["lineage"]["step"] == 2
    rows = losses(run_folder(server, "branch")).splitlines()
    assert rows[:3] == losses(run_folder(server, "source")).splitlines()[:3]
    assert executed_again(server, graph)["state"] == "restored"


def test_several_data_sets_train_in_one_run(server, graphs, drawn):
    graph = graphs.training(TINY, drawn, name="several", steps=6)
    graph["5"] = graphs.node("AtelierDatasetFolder", folder=str(drawn), repeats=2, trigger="other")
    graph["6"] = {"class_type": "AtelierConcepts", "inputs": {"dataset_1": ["2", 0], "dataset_2": ["5", 0]}}
    graph["7"] = graphs.node("AtelierCaptions", dataset=["6", 0], shuffle_tags=True, keep_tags=1, append="film grain")
    graph["3"]["inputs"]["dataset"] = ["7", 0]
    assert server.run(graph)["3"]["atelier"][0]["state"] == "finished"
    about = json.loads((run_folder(server, "several") / "run.json").read_text("utf-8"))
    assert [c["repeats"] for c in about["config"]["data"]["concepts"]] == [1, 2]
    assert {c["append"] for c in about["config"]["data"]["concepts"]} == {"film grain"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 403),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({}, 404),
    ],
)
def test_only_the_servers_own_page_may_ask_a_run(server, headers, status):
    with pytest.raises(Refused) as refused:
        server.call("/atelier/runs/0123456789abcdef/stop", {}, headers)
    assert refused.value.status == status


def test_the_curve_of_a_schedule_is_answered_and_a_fault_has_its_place(server):
    answer = server.call("/atelier/schedule", {"schedule": "0->1e-4:10%, 1e-4->0 cosine", "steps": 100})
    assert answer["points"][0] == [0, 0.0]
    assert [10, 1e-4] in answer["points"]
    assert answer["points"][-1][0] == 100
    assert answer["highest"] == 1e-4
    answer = server.call("/atelier/schedule", {"schedule": "1e-4, 1e-5", "steps": 100})
    assert answer["error"]["setting"] == "schedule"
    assert answer["error"]["column"] >= 1
