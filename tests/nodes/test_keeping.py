"""What is kept of runs: which one a graph means, and published files whose names are never used twice."""

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sd_atelier.lib.checkpoints import TrainState
from sd_atelier.lib.config import RunConfig, merge
from sd_atelier.lib.files import sha256_of
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.nodes.keeping import earlier_runs, network_file, publish, strip_of_previews, write_network

ABOUT = {"versions": {}, "base": {}, "data_manifest": {}}
CONFIG = merge(RunConfig(), {"name": "toy", "data": {"concepts": [{"folder": "a"}]}, "loop": {"steps": 4}})


def made(parent, steps=(2, 4), config=CONFIG):
    """A run with checkpoints."""
    run = RunFolder.create(parent, config.name, config, **ABOUT)
    with run.owner():
        for step in steps:
            run.save(
                TrainState(step=step, images_seen=step),
                {"x.lora_up.weight": torch.full((2, 2), float(step))},
                lambda stem: {"ss_output_name": stem, "ss_steps": "4"},
            )
    return run


def test_the_runs_of_a_graph_are_those_of_its_name_with_its_settings_newest_first(tmp_path):
    runs = [made(tmp_path) for _ in range(11)]
    made(tmp_path, config=merge(CONFIG, {"name": "toy-story"}))
    made(tmp_path, config=merge(CONFIG, {"loop": {"seed": 5}}))
    (tmp_path / "toy-99").mkdir()
    assert [run.path for run in earlier_runs(tmp_path, "toy", CONFIG)] == [run.path for run in reversed(runs)]
    assert earlier_runs(tmp_path / "none", "toy", CONFIG) == []


def test_settings_that_change_no_number_do_not_make_another_run(tmp_path):
    run = made(tmp_path)
    changed = merge(
        CONFIG, {"save": {"keep_last": 3}, "preview": {"prompts": ["a"]}, "data": {"concepts": [{"folder": "b"}]}}
    )
    assert [found.id for found in earlier_runs(tmp_path, "toy", changed)] == [run.id]


def test_a_branch_is_known_by_what_it_branched_off_from(tmp_path):
    run = made(tmp_path)
    branch = RunFolder.fork(run, 2, tmp_path, "toy", CONFIG, **ABOUT)
    assert [found.id for found in earlier_runs(tmp_path, "toy", CONFIG)] == [run.id]
    assert [found.id for found in earlier_runs(tmp_path, "toy", CONFIG, (run.id, 2))] == [branch.id]
    assert earlier_runs(tmp_path, "toy", CONFIG, (run.id, 4)) == []


def test_the_network_of_a_step_or_the_newest(tmp_path):
    run = made(tmp_path)
    assert network_file(run)[0] == 4
    assert network_file(run, 2)[1].name == "toy-000002.safetensors"
    with pytest.raises(ValueError, match="there are 2, 4"):
        network_file(run, 3)
    with pytest.raises(ValueError, match="no checkpoint yet"):
        network_file(made(tmp_path, steps=()))


def test_a_published_network_knows_its_name_and_is_found_again(tmp_path):
    _, network = network_file(made(tmp_path / "runs"))
    first = publish(network, tmp_path / "loras", "My toy")
    assert first.name == "My toy.safetensors"
    with safe_open(str(first), framework="pt") as file:
        assert file.metadata() == {"ss_output_name": "My toy", "ss_steps": "4"}
        assert file.get_tensor("x.lora_up.weight").eq(4).all()
    assert publish(network, tmp_path / "loras", "My toy") == first


def test_no_name_is_used_twice(tmp_path):
    loras = tmp_path / "loras"
    loras.mkdir()
    (loras / "TOY.safetensors").write_bytes(b"of somebody else")
    run = made(tmp_path / "runs")
    before = sha256_of(loras / "TOY.safetensors")
    files = [
        publish(network_file(run, 4)[1], loras, "toy"),
        publish(network_file(run, 2)[1], loras, "toy"),
        publish(network_file(run, 4)[1], loras, "toy", {"modelspec.title": "A toy"}),
        write_network(loras, "toy", {"x": torch.ones(2)}, {}),
    ]
    assert [path.name for path in files] == [f"toy-{n}.safetensors" for n in (2, 3, 4, 5)]
    assert sha256_of(loras / "TOY.safetensors") == before


def test_a_published_file_that_was_changed_or_removed_is_published_again(tmp_path):
    _, network = network_file(made(tmp_path / "runs"))
    first = publish(network, tmp_path / "loras", "toy")
    first.unlink()
    again = publish(network, tmp_path / "loras", "toy")
    assert again.is_file()
    again.write_bytes(b"changed by hand")
    assert publish(network, tmp_path / "loras", "toy") != again


@pytest.mark.parametrize("name", ["../../evil", "a/b", "CON", "x" * 400, "\0", "..", ""])
def test_a_published_name_never_leaves_the_folder(tmp_path, name):
    _, network = network_file(made(tmp_path / "runs"))
    path = publish(network, tmp_path / "loras", name)
    assert path.parent == tmp_path / "loras"
    assert path.is_file()


def test_previews_become_a_strip(tmp_path):
    run = made(tmp_path, config=merge(CONFIG, {"preview": {"prompts": ["a toy", "a cat"]}}))
    assert strip_of_previews(run) is None
    for step in (0, 4):
        for number in (1, 2):
            Image.new("RGB", (64, 64), (60 * step, 90 * number, 0)).save(run.previews / f"{step:06d}-{number}-x.png")
    (run.previews / "note.txt").write_text("no picture", "utf-8")
    strip = strip_of_previews(run)
    assert strip.width > 2 * 64
    assert (run.path / "previews.png").is_file()
