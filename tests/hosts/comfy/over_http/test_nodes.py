"""What the server lists of the pack, and what it says of bad input before anything runs."""

import re
from pathlib import Path

import pytest
import sd_atelier.nodes
import torch
from comfy_client import Graphs, Refused
from safetensors.torch import save_file

IDS = re.findall(r"^    (Atelier\w+)  ", sd_atelier.nodes.__doc__, re.MULTILINE)


def refusal(server, graph, node):
    """The one sentence on a node of a graph that is not accepted."""
    with pytest.raises(Refused) as refused:
        server.queue(graph)
    assert refused.value.status == 400
    errors = refused.value.answer["node_errors"]
    assert list(errors) == [node]
    (error,) = errors[node]["errors"]
    assert error["type"] == "custom_validation_failed"
    return error["details"].partition(" - ")[2]


@pytest.mark.parametrize("node_id", IDS)
def test_every_node_is_listed_with_a_word_on_each_socket(server, node_id):
    about = server.call(f"/object_info/{node_id}")[node_id]
    assert about["category"] == "Atelier"
    assert about["description"]
    given = {**about["input"].get("required", {}), **about["input"].get("optional", {})}
    assert [name for name, spec in given.items() if not spec[1].get("tooltip")] == []
    assert all(about["output_tooltips"])
    assert "" not in about["output_name"]


def test_every_listed_node_is_told_of(server):
    listed = {name for name in server.call("/object_info") if name.startswith("Atelier")}
    assert {name for name in listed if not name.startswith("AtelierTest")} == set(IDS)


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("", "folder is empty"),
        ("nothing-here", "there is no folder"),
        ("/nothing/there", "there is no folder"),
        ("bad\0name", "not the name of a folder"),
    ],
)
def test_a_folder_that_is_not_there_is_said_before_anything_runs(server, graphs, folder, sentence):
    graph = graphs.training("flux-mini", folder)
    assert re.search(sentence, refusal(server, graph, "2"))


def test_a_folder_without_pictures_is_said(server, graphs, tmp_path):
    (tmp_path / "note.txt").write_text("no picture", "utf-8")
    assert "there is no picture" in refusal(server, graphs.training("flux-mini", tmp_path), "2")


def test_a_server_that_others_reach_says_the_line_that_allows_a_folder_and_then_takes_it(fresh, drawn):
    fresh.arguments += ("--listen", "0.0.0.0")
    fresh.start()
    graph = {"2": Graphs(fresh).node("AtelierDatasetFolder", folder=str(drawn))}
    graph["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}}
    said = re.search("write this line into (.*) on the machine it runs on: (.*)", refusal(fresh, graph, "2"))
    assert Path(said[1]) == fresh.folder / "user" / "atelier.json"
    Path(said[1]).write_text(said[2], "utf-8")
    assert "toys" in fresh.run(graph)["9"]["text"][0]
    graph["2"]["inputs"]["folder"] = str(drawn.parent)
    assert "may not be used" in refusal(fresh, graph, "2")


def test_a_path_with_the_quotes_of_a_file_manager_is_taken(server, graphs, drawn):
    graph = {"2": graphs.node("AtelierDatasetFolder", folder=f' "{drawn}" ')}
    graph["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}}
    assert "toys" in server.run(graph)["9"]["text"][0]


@pytest.mark.parametrize("schedule", ["1e-4:5:9", "1e-4 -> ", "nan", "1e-4, 1e-5", "5 x (1e-4"])
def test_a_schedule_that_cannot_be_read_is_said_with_its_place(server, graphs, drawn, schedule):
    graph = graphs.training("flux-mini", drawn)
    graph["5"] = graphs.node("AtelierSchedule", schedule=schedule)
    graph["3"]["inputs"]["schedule"] = ["5", 0]
    assert re.search(r"schedule, column \d+", refusal(server, graph, "5"))


@pytest.mark.parametrize(("schedule", "fits"), [("1e-4:3", False), ("1e-4:4", True), ("1e-4:3, 1e-5:-1", True)])
def test_a_schedule_that_ends_before_the_run_is_said_before_anything_runs(server, graphs, drawn, schedule, fits):
    graph = graphs.training("flux-mini", drawn, name="ends", steps=4)
    graph["5"] = graphs.node("AtelierSchedule", schedule=schedule)
    graph["3"]["inputs"]["schedule"] = ["5", 0]
    if fits:
        server.queue(graph)
    else:
        assert "the schedule ends at step 3 and the run at step 4" in refusal(server, graph, "5")


def test_a_lora_of_another_family_is_said_before_anything_runs(server, graphs):
    graph, model, clip, _ = graphs.model("flux-mini")
    lora = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.ones(4, 768),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": torch.ones(320, 4),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.alpha": torch.tensor(4.0),
    }
    (server.output / "loras").mkdir(exist_ok=True)
    save_file(lora, server.output / "loras" / "of-sd1.safetensors")
    graph["7"] = graphs.node("AtelierLoadLora", model=model, clip=clip, file="of-sd1.safetensors")
    graph["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["7", 3]}}
    assert "is a LoRA for sd1, and this model is flux" in refusal(server, graph, "7")


def test_bad_rules_are_said(server, graphs):
    graph = {"5": graphs.node("AtelierLora", rules="lora_unet_* rank=eight")}
    graph["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["5", 0]}}
    assert "rules, line 1" in refusal(server, graph, "5")
