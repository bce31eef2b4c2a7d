"""Checkpoints: whatever fails and whenever, the newest whole one is there, and nothing else is taken for one."""

import errno
import itertools
import os
import random
import shutil
from collections import deque

import pytest
import torch
from safetensors.torch import load_file
from sd_atelier.lib import files
from sd_atelier.lib.checkpoints import MARKER, Checkpoints, NoCheckpointError, TrainState


def make(folder, name="net"):
    for subfolder in ("checkpoints", "state"):
        (folder / subfolder).mkdir(parents=True)
    (folder / MARKER).touch()
    return Checkpoints(folder, name)


def state_of(step):
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "trainable.a": torch.randn(4, 3, generator=generator),
        "optimizer.a.exp_avg": torch.randn(4, 3, generator=generator),
        "optimizer.a.step": torch.tensor(float(step)),
        "generator": torch.randint(0, 256, (16,), generator=generator).to(torch.uint8),
    }
    values = {"position": {"epoch": step // 10, "index": step}, "scale": 65536.0 / (step + 1), "inf": float("inf")}
    return TrainState(
        step=step, images_seen=3 * step, tensors=tensors, values=values, records={"loss.csv": 10 * step, "run.csv": 5}
    )


def weights_of(step):
    generator = torch.Generator().manual_seed(1000 + step)
    return {"lora.up": torch.randn(4, 2, generator=generator).half(), "lora.alpha": torch.tensor(2.0)}


def metadata_of(stem):
    return {"ss_output_name": stem, "ss_network_dim": "2"}


def save(checkpoints, step, **options):
    return checkpoints.save(state_of(step), weights_of(step), metadata_of, **options)


def assert_is(loaded, step):
    state, weights, _ = loaded
    wanted = state_of(step)
    assert (state.step, state.images_seen, state.values, state.records) == (
        wanted.step,
        wanted.images_seen,
        wanted.values,
        wanted.records,
    )
    for got, expected in ((state.tensors, wanted.tensors), (weights, weights_of(step))):
        assert got.keys() == expected.keys()
        for name in expected:
            assert got[name].dtype == expected[name].dtype and torch.equal(got[name], expected[name])


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_checkpoint_comes_back_whole(tmp_path):
    checkpoints = make(tmp_path)
    path = save(checkpoints, 800)
    assert path == tmp_path / "checkpoints" / "net-000800.safetensors"
    assert sorted(tree(tmp_path)) == [
        MARKER,
        "checkpoints/net-000800.safetensors",
        "state/000800.json",
        "state/000800.safetensors",
    ]
    loaded = checkpoints.load()
    assert_is(loaded, 800)
    assert loaded[2] == []
    assert torch.equal(load_file(path)["lora.up"], weights_of(800)["lora.up"])
    assert files.read_safetensors(path)[1] == metadata_of("net-000800")


def test_order_is_that_of_steps_not_of_names_or_times(tmp_path):
    checkpoints = make(tmp_path)
    for step in (7, 999_999, 1_000_000, 12_345_678):
        save(checkpoints, step)
    for step in (7, 999_999):
        os.utime(checkpoints.networks()[step], (2e9, 2e9))
        os.utime(tmp_path / "state" / f"{step:06d}.json", (2e9, 2e9))
    assert checkpoints.steps() == list(checkpoints.networks()) == [7, 999_999, 1_000_000, 12_345_678]
    assert_is(checkpoints.load(), 12_345_678)
    assert_is(checkpoints.load(7), 7)


def test_files_with_names_that_only_look_like_ours_are_no_checkpoints(tmp_path):
    checkpoints = make(tmp_path)
    save(checkpoints, 5)
    manifest = (tmp_path / "state" / "000005.json").read_bytes()
    for name in (
        "0000006.json",
        "7.json",
        "000008.json.part",
        "000009-1.json",
        "00001\uff10.json",
        "x000011.json",
        "-1.json",
    ):
        (tmp_path / "state" / name).write_bytes(manifest)
    assert list(checkpoints.networks()) == [5]
    (tmp_path / "state" / "000012.json").write_bytes(manifest)
    state, _, notes = checkpoints.load()
    assert state.step == 5
    assert len(notes) == 1 and "000012.json is of step 5" in notes[0]


def test_nothing_to_go_on_from_is_said(tmp_path):
    checkpoints = make(tmp_path)
    with pytest.raises(NoCheckpointError, match=r"no checkpoint to go on from \(there: none\)"):
        checkpoints.load()
    save(checkpoints, 5)
    with pytest.raises(NoCheckpointError, match=r"no checkpoint of step 6 to go on from \(there: 5\)"):
        checkpoints.load(6)
    (tmp_path / "state" / "000005.safetensors").unlink()
    with pytest.raises(NoCheckpointError, match=r"step 5 cannot be used: .*000005\.safetensors is missing"):
        checkpoints.load()


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failure_at_any_call_leaves_every_earlier_checkpoint_byte_equal(tmp_path, failing_disk, code, lasting):
    origin = make(tmp_path / "origin")
    save(origin, 1)
    save(origin, 2)
    before = tree(tmp_path / "origin")
    kinds = set()
    for at in itertools.count():
        folder = tmp_path / "run"
        failing_disk.disarm()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "origin", folder)
        checkpoints = Checkpoints(folder, "net")
        failing_disk.arm(at, code, lasting=lasting)
        try:
            save(checkpoints, 3, keep_last=1)
            saved = True
        except OSError as error:
            saved = False
            assert error.errno == code
        if failing_disk.failed is None:
            break
        kinds.add(failing_disk.failed)
        failing_disk.disarm()
        after = tree(folder)
        assert not [name for name in after if name.endswith(".part")]
        if not saved:
            assert {name: after[name] for name in before} == before
        # after the rename of the manifest only the flush of its folder can fail: it is there, but was not promised
        committed = "state/000003.json" in after
        newest = 3 if saved or committed else 2
        loaded = checkpoints.load()
        assert_is(loaded, newest)
        assert loaded[2] == []
        save(checkpoints, 3, keep_last=1)
        assert_is(checkpoints.load(), 3)
        assert checkpoints.steps() == [2, 3]
    assert kinds == {"_open", "_write", "_fsync", "_replace", "_close"}
    assert at >= 3 * 8


def test_a_full_disk_is_found_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = make(tmp_path)
    save(checkpoints, 1)
    before = tree(tmp_path)
    size = sum(t.numel() * t.element_size() for t in (*state_of(2).tensors.values(), *weights_of(2).values()))
    monkeypatch.setattr(files, "free_bytes", lambda folder: 2 * size - 1)
    with pytest.raises(files.DiskFullError, match=r"the disk is full: .* MB are needed, .* MB are free") as caught:
        save(checkpoints, 2)
    assert caught.value.errno == errno.ENOSPC
    assert tree(tmp_path) == before
    monkeypatch.setattr(files, "free_bytes", lambda folder: 2 * size)
    save(checkpoints, 2)


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        (dtype, float(bad))
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn)
        for bad in ("nan", "inf", "-inf")
        if bad == "nan" or dtype != torch.float8_e4m3fn  # which has no infinity
    ],
)
def test_a_weight_that_is_not_finite_is_never_published(tmp_path, dtype, bad):
    checkpoints = make(tmp_path)
    before = tree(tmp_path)
    weights = {"fine": torch.zeros(3), "broken": torch.tensor([1.0, bad]).to(dtype)}
    with pytest.raises(ValueError, match='weight "broken" is not finite'):
        checkpoints.save(state_of(1), weights, metadata_of)
    assert tree(tmp_path) == before


def test_state_that_json_would_change_is_refused(tmp_path):
    checkpoints = make(tmp_path)
    state = state_of(1)
    state.values["visits"] = {3: 4}
    with pytest.raises(ValueError, match=r"state\.values\.visits must have texts as keys, got 3"):
        checkpoints.save(state, weights_of(1), metadata_of)
    assert checkpoints.networks() == {}


def test_500_flips_and_cuts_are_all_named_and_passed_over(tmp_path):
    checkpoints = make(tmp_path)
    for step in (1, 2):
        save(checkpoints, step)
    generator = random.Random(0)
    paths = [checkpoints.networks()[2], tmp_path / "state" / "000002.safetensors", tmp_path / "state" / "000002.json"]
    for number in range(500):
        path = paths[number % 3]
        raw = path.read_bytes()
        if number % 4:
            place = generator.randrange(8 * len(raw))
            bad = bytearray(raw)
            bad[place // 8] ^= 1 << place % 8
        else:
            bad = raw[: generator.randrange(len(raw))]
        path.write_bytes(bad)
        loaded = checkpoints.load()
        assert_is(loaded, 1)
        assert len(loaded[2]) == 1 and str(path) in loaded[2][0] and "step 2 cannot be used" in loaded[2][0]
        with pytest.raises(NoCheckpointError, match=path.name):
            checkpoints.load(2)
        path.write_bytes(raw)
    assert checkpoints.steps() == [1, 2]


def test_other_damage_is_named_too(tmp_path):
    checkpoints = make(tmp_path)
    for step in (1, 2):
        save(checkpoints, step)
    network = checkpoints.networks()[2]
    raw = network.read_bytes()
    network.write_bytes(raw + b"x")
    assert f"{network} has {len(raw) + 1} bytes instead of {len(raw)}" in checkpoints.load()[2][0]
    for damage in (
        lambda: network.write_bytes(bytes(len(raw))),
        lambda: network.write_bytes(checkpoints.networks()[1].read_bytes()),
        network.unlink,
        network.mkdir,
    ):
        damage()
        loaded = checkpoints.load()
        assert_is(loaded, 1)
        assert str(network) in loaded[2][0]
    assert checkpoints.steps() == [1]


def test_a_network_without_its_manifest_is_not_taken_for_a_checkpoint_and_is_written_anew(tmp_path):
    checkpoints = make(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    (tmp_path / "state" / "000002.json").unlink()
    assert_is(checkpoints.load(), 1)
    assert save(checkpoints, 2).name == "net-000002.safetensors"
    assert_is(checkpoints.load(), 2)


def test_a_committed_file_is_never_written_again(tmp_path):
    checkpoints = make(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    network = checkpoints.networks()[2]
    network.write_bytes(b"damaged")
    assert_is(checkpoints.load(), 1)
    assert save(checkpoints, 2) == tmp_path / "checkpoints" / "net-000002-2.safetensors"
    assert files.read_safetensors(tmp_path / "checkpoints" / "net-000002-2.safetensors")[1] == metadata_of(
        "net-000002-2"
    )
    assert_is(checkpoints.load(), 2)
    assert not network.exists() and checkpoints.steps() == [1, 2]
    assert save(checkpoints, 2).name == "net-000002-3.safetensors"
    assert checkpoints.steps() == [1, 2]


def test_a_name_that_another_program_holds_is_not_waited_for_forever(tmp_path, monkeypatch):
    checkpoints = make(tmp_path)
    held = "000003.safetensors"

    def replace(part, path):
        if path.name == held:
            raise PermissionError(errno.EACCES, "held")
        os.replace(part, path)

    monkeypatch.setattr(files, "_replace", replace)
    monkeypatch.setattr(files, "_sleep", lambda seconds: None)
    assert save(checkpoints, 3).name == "net-000003-2.safetensors"
    assert_is(checkpoints.load(), 3)


def test_going_back_puts_later_checkpoints_aside(tmp_path):
    checkpoints = make(tmp_path)
    for step in (10, 20, 30):
        save(checkpoints, step)
    checkpoints.load(10)
    save(checkpoints, 15)
    assert_is(checkpoints.load(), 15)
    assert checkpoints.steps() == [10, 15]
    assert save(checkpoints, 20).name == "net-000020-2.safetensors"
    assert (tmp_path / "checkpoints" / "net-000030.safetensors").exists()
    # a name taken back: what was put aside is whole still
    (tmp_path / "state" / "000030.json.aside").rename(tmp_path / "state" / "000030.json")
    assert_is(checkpoints.load(), 30)


@pytest.mark.parametrize(
    ("keep_last", "pins", "left"),
    [
        (0, (), [1, 2, 3, 4, 5, 6]),
        (1, (), [5, 6]),
        (2, (), [5, 6]),
        (3, (), [4, 5, 6]),
        (2, (1, 4, 99), [1, 4, 5, 6]),
        (100, (), [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_newest_and_the_pinned_are_kept_and_never_fewer_than_two(tmp_path, keep_last, pins, left):
    checkpoints = make(tmp_path)
    for step in range(1, 7):
        save(checkpoints, step, keep_last=keep_last, pins=pins)
    assert checkpoints.steps() == left
    names = {f"{s:06d}" for s in left}
    assert {p.stem for p in (tmp_path / "state").iterdir()} == names
    assert {p.stem for p in (tmp_path / "checkpoints").iterdir()} == {f"net-{n}" for n in names}


def test_a_damaged_checkpoint_does_not_count_as_one_of_the_two(tmp_path):
    checkpoints = make(tmp_path)
    for step in (1, 2, 3):
        save(checkpoints, step)
    checkpoints.networks()[3].write_bytes(b"damaged")
    save(checkpoints, 4, keep_last=1)
    assert checkpoints.steps() == [2, 4]
    assert list(checkpoints.networks()) == [2, 4]


def test_two_whole_checkpoints_remain_in_every_random_history(tmp_path):
    generator = random.Random(1)
    for history in range(8):
        checkpoints = make(tmp_path / str(history))
        step = 0
        for _ in range(12):
            step += generator.randint(1, 3)
            keep_last, pins = generator.randint(0, 4), tuple(generator.sample(range(30), 2))
            before, committed = checkpoints.steps(), list(checkpoints.networks())
            save(checkpoints, step, keep_last=keep_last, pins=pins)
            whole = checkpoints.steps()
            assert set([*before, step][-2:]) <= set(whole)
            wanted = set([*committed, step][-keep_last:]) | (set(pins) & set(committed))
            assert wanted <= set(checkpoints.networks())
            assert len(checkpoints.networks()) <= len(wanted) + 2
            if generator.random() < 0.3:
                victim = generator.choice(list(checkpoints.networks().values()))
                victim.write_bytes(victim.read_bytes()[:-1])


def test_the_new_one_is_whole_before_an_old_one_goes(tmp_path, monkeypatch):
    checkpoints = make(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    seen = []
    unlink = type(tmp_path).unlink

    def watched(self, *args, **kwargs):
        if "000001" in self.name:
            seen.append(checkpoints.steps())
        return unlink(self, *args, **kwargs)

    monkeypatch.setattr(type(tmp_path), "unlink", watched)
    save(checkpoints, 3, keep_last=1)
    assert len(seen) == 3 and all(steps == [2, 3] for steps in seen)


def test_a_crash_between_removals_leaves_nothing_half_and_a_later_save_ends_it(tmp_path, monkeypatch):
    class Crash(BaseException):
        pass

    unlink = type(tmp_path).unlink
    for at in range(3):
        folder = tmp_path / str(at)
        checkpoints = make(folder)
        save(checkpoints, 1)
        save(checkpoints, 2)
        removals = deque()

        def crashing(self, *args, removals=removals, at=at, **kwargs):
            if "000001" in self.name:
                removals.append(self)
                if len(removals) == at + 1:
                    raise Crash
            return unlink(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(type(tmp_path), "unlink", crashing)
            with pytest.raises(Crash):
                save(checkpoints, 3, keep_last=1)
        assert checkpoints.steps() == [2, 3] and list(checkpoints.networks()) == [2, 3]
        save(checkpoints, 4, keep_last=1)
        assert not [name for name in tree(folder) if "000001" in name]


def test_a_file_that_is_in_use_is_removed_by_a_later_save(tmp_path, monkeypatch):
    checkpoints = make(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    unlink = type(tmp_path).unlink

    def held(self, *args, **kwargs):
        if self.name == "net-000001.safetensors":
            raise PermissionError(errno.EACCES, "in use")
        return unlink(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "unlink", held)
        save(checkpoints, 3, keep_last=2)
        save(checkpoints, 4, keep_last=2)
        assert (tmp_path / "checkpoints" / "net-000001.safetensors").exists()
        assert checkpoints.steps() == [3, 4]
    save(checkpoints, 5, keep_last=2)
    assert not [name for name in tree(tmp_path) if "000001" in name]


def test_nothing_is_removed_through_a_link_or_without_the_marker(tmp_path):
    for name in ("state", "checkpoints"):
        checkpoints = make(tmp_path / name)
        real = tmp_path / f"real-{name}"
        (tmp_path / name / name).rename(real)
        (tmp_path / name / name).symlink_to(real, target_is_directory=True)
        for step in (1, 2, 3):
            save(checkpoints, step)
        before = tree(real)
        with pytest.raises(ValueError, match=r"never done through a link: .* or set save\.keep_last to 0"):
            save(checkpoints, 4, keep_last=1)
        assert tree(real) == before
    checkpoints = make(tmp_path / "unmarked")
    (tmp_path / "unmarked" / MARKER).unlink()
    save(checkpoints, 1)
    save(checkpoints, 1)
    assert len(tree(tmp_path / "unmarked")) == 6


def test_a_copy_in_another_run_has_that_run_s_name_in_its_metadata(tmp_path):
    source, target = make(tmp_path / "a", "old"), make(tmp_path / "b", "new")
    save(source, 4)
    save(source, 8)
    state = source.copy_to(target, 4, {"scale": 1.0})
    assert state.values == {**state_of(4).values, "scale": 1.0}
    loaded, weights, _ = target.load()
    assert loaded.values == state.values and loaded.records == state_of(4).records
    assert torch.equal(weights["lora.up"], weights_of(4)["lora.up"])
    path = target.networks()[4]
    assert path.name == "new-000004.safetensors"
    assert files.read_safetensors(path)[1] == {"ss_output_name": "new-000004", "ss_network_dim": "2"}
    assert source.steps() == [4, 8]
