"""The plan covers every copy once, and every position of it can be resumed and forked."""

import json
import random
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
import torch
from sd_atelier.lib.config import DataConfig
from sd_atelier.lib.data.cache import LatentCache, LatentEntry
from sd_atelier.lib.data.loader import Loader, Position
from sd_atelier.lib.data.sample import Sample

BUCKETS = ((64, 64), (96, 64), (64, 96))
CONFIG = DataConfig(flip=True, shuffle_tags=True, keep_tags=1, tag_dropout=0.3, caption_dropout=0.1)


def make_sample(index, bucket=(64, 64), repeats=1, weight=1.0):
    return Sample(
        name=f"set/{index:04d}.png",
        path=Path(f"{index}.png"),
        caption=f"trigger, one {index}, two, three, four",
        size=(100 + index, 90),
        bucket=bucket,
        repeats=repeats,
        weight=weight,
    )


def make_samples(num=17, seed=0):
    """Samples over three buckets with 1 to 3 repeats."""
    rng = random.Random(seed)
    return [make_sample(i, rng.choice(BUCKETS), rng.randint(1, 3), rng.choice((0.5, 1.0, 2.0))) for i in range(num)]


def make_cache(samples, masked=()):
    def latents(sample, shift):
        width, height = sample.bucket
        start = int(sample.name[4:8]) + shift
        return torch.full((4, height // 8, width // 8), float(start))

    def mask(sample):
        return torch.full((1, sample.bucket[1] // 8, sample.bucket[0] // 8), 0.25) if sample.name in masked else None

    return LatentCache.from_latents(
        LatentEntry(sample=s, latents=latents(s, 0), flipped=latents(s, 10_000), mask=mask(s)) for s in samples
    )


def make_loader(samples, batch_size=3, accumulate=2, seed=5, data=CONFIG, cache=None, **ranks):
    cache = make_cache(samples) if cache is None else cache
    return Loader(samples, cache, data, batch_size=batch_size, accumulate=accumulate, seed=seed, **ranks)


def shown(step):
    """Everything in the batches of a step, comparable."""
    return [
        (b.names, b.visits, b.captions, b.latents.tolist(), b.weight.tolist(), b.sizes, b.epoch, b.mask is None)
        for b in step
    ]


def copies(steps):
    return Counter((name, visit) for step in steps for b in step for name, visit in zip(b.names, b.visits, strict=True))


def expected_copies(samples, epoch):
    return Counter((s.name, epoch * s.repeats + copy) for s in samples for copy in range(s.repeats))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_an_epoch_holds_each_copy_once_in_batches_of_one_bucket(batch_size, accumulate):
    samples = make_samples()
    bucket_of = {s.name: s.bucket for s in samples}
    with make_loader(samples, batch_size, accumulate) as loader:
        for epoch in range(3):
            steps = [loader.next_step() for _ in range(loader.num_steps_per_epoch)]
            assert copies(steps) == expected_copies(samples, epoch)
            batches = [b for step in steps for b in step]
            assert len(batches) == loader.num_batches_per_epoch
            assert all(b.epoch == epoch for b in batches)
            assert all(len(step) == accumulate for step in steps[:-1])
            assert 1 <= len(steps[-1]) <= accumulate
            for b in batches:
                buckets = {bucket_of[name] for name in b.names}
                assert len(buckets) == 1
                width, height = buckets.pop()
                assert b.latents.shape == (len(b.names), 4, height // 8, width // 8)
                assert len(b.names) <= batch_size
            short = [b for b in batches if len(b.names) < batch_size]
            assert len(short) <= len(set(bucket_of.values()))
            assert loader.position == Position(epoch + 1)


def test_epochs_and_seeds_differ_in_order_and_the_order_of_the_samples_does_not_matter():
    samples = make_samples(40)

    def names(samples, seed, epoch):
        with make_loader(samples, seed=seed) as loader:
            loader.seek(Position(epoch))
            return [b.names for _ in range(loader.num_steps_per_epoch) for b in loader.next_step()]

    first = names(samples, 0, 0)
    assert names(samples[::-1], 0, 0) == first
    assert names(samples, 0, 1) != first
    assert names(samples, 1, 0) != first


def test_buckets_are_mixed():
    samples = [make_sample(i, BUCKETS[i % 2]) for i in range(60)]
    with make_loader(samples, batch_size=1, accumulate=1) as loader:
        buckets = [loader.next_step()[0].sizes[0][4:] for _ in range(60)]
    changes = sum(a != b for a, b in zip(buckets[1:], buckets[:-1], strict=True))
    assert 15 < changes < 45  # 30 in the mean, deviation 3.8


def test_visits_count_each_picture_from_zero_without_gaps():
    samples = make_samples()
    with make_loader(samples) as loader:
        seen = copies(loader.next_step() for _ in range(3 * loader.num_steps_per_epoch))
    assert set(seen.values()) == {1}
    for s in samples:
        assert sorted(v for name, v in seen if name == s.name) == list(range(3 * s.repeats))


def test_what_a_visit_is_does_not_depend_on_the_batch_it_lands_in():
    samples = make_samples()

    def visits(batch_size, accumulate):
        found = {}
        with make_loader(samples, batch_size, accumulate) as loader:
            for _ in range(2 * loader.num_steps_per_epoch):
                for b in loader.next_step():
                    for i, k in enumerate(zip(b.names, b.visits, strict=True)):
                        found[k] = b.captions[i], b.latents[i].tolist(), b.sizes[i], b.weight[i].item()
        return found

    first = visits(1, 1)
    assert visits(4, 3) == first
    flips = sum(latents[0][0][0] >= 10_000 for _, latents, _, _ in first.values())
    assert 0.25 < flips / len(first) < 0.75
    assert len({caption for caption, *_ in first.values()}) > len(samples)


def test_captions_are_composed_with_the_settings():
    samples = make_samples()
    with make_loader(samples, data=DataConfig()) as loader:
        captions = {c for _ in range(loader.num_steps_per_epoch) for b in loader.next_step() for c in b.captions}
    assert captions == {s.caption for s in samples}
    with make_loader(samples, data=DataConfig(caption_dropout=1.0)) as loader:
        assert {c for b in loader.next_step() for c in b.captions} == {""}
    with make_loader(samples, data=DataConfig(shuffle_tags=True, keep_tags=1)) as loader:
        shuffled = [c for _ in range(loader.num_steps_per_epoch) for b in loader.next_step() for c in b.captions]
    assert all(c.startswith("trigger, ") for c in shuffled)
    assert not set(shuffled) <= {s.caption for s in samples}


def test_masks_are_batched_with_ones_where_a_picture_has_none():
    samples = [make_sample(i) for i in range(4)]
    cache = make_cache(samples, masked={samples[1].name})
    with make_loader(samples, 4, 1, cache=cache) as loader:
        (batch,) = loader.next_step()
    assert batch.mask.shape == (4, 1, 8, 8)
    for name, mask in zip(batch.names, batch.mask, strict=True):
        assert (mask == (0.25 if name == samples[1].name else 1.0)).all()
    with make_loader(samples, 1, 4, cache=cache) as loader:
        assert {b.names[0]: b.mask is None for b in loader.next_step()} == {
            s.name: s is not samples[1] for s in samples
        }


def test_weights_sizes_and_dtypes():
    samples = [make_sample(i, weight=i / 2) for i in range(3)]
    with make_loader(samples, 3, 1, data=DataConfig()) as loader:
        (batch,) = loader.next_step()
    assert batch.weight.dtype == batch.latents.dtype == torch.float32
    for name, weight, size in zip(batch.names, batch.weight.tolist(), batch.sizes, strict=True):
        index = int(name[4:8])
        assert weight == index / 2
        assert size == (100 + index, 90, 0, 0, 64, 64)


def test_resume_at_every_position_equals_the_uninterrupted_sequence():
    samples = make_samples()
    with make_loader(samples) as loader:
        num_steps = 2 * loader.num_steps_per_epoch + 3
        positions, steps = [], []
        for _ in range(num_steps):
            positions.append(json.loads(json.dumps(loader.position.to_dict())))
            steps.append(shown(loader.next_step()))
    for i, position in enumerate(positions):
        with make_loader(samples) as resumed:
            resumed.seek(Position.from_dict(position))
            assert [shown(resumed.next_step()) for _ in range(min(3, num_steps - i))] == steps[i : i + 3]


def test_seek_while_a_step_is_loaded_ahead_gives_the_step_asked_for():
    samples = make_samples()
    with make_loader(samples) as loader:
        positions, steps = [], []
        for _ in range(8):
            positions.append(loader.position)
            steps.append(shown(loader.next_step()))
        for i in (5, 0, 7, 7, 2):
            loader.seek(positions[i])
            assert loader.position == positions[i]
            assert shown(loader.next_step()) == steps[i]


@pytest.mark.parametrize("seed", range(25))
def test_a_fork_with_other_batches_sees_the_rest_of_the_epoch_exactly_once(seed):
    rng = random.Random(seed)
    samples = make_samples(rng.randint(1, 25), seed)
    settings = [{"batch_size": rng.randint(1, 6), "accumulate": rng.randint(1, 4)} for _ in range(4)]
    seen = Counter()
    position, old = Position(rng.randint(0, 3)), None
    epoch = position.epoch
    for new in settings:  # a fork of a fork of a fork
        with make_loader(samples, **new) as loader:
            position = loader.replan(position, **old, seed=5) if old else position
            loader.seek(Position.from_dict(position.to_dict()))
            for _ in range(rng.randint(0, 3)):
                if loader.position.epoch == epoch:
                    seen += copies([loader.next_step()])
            position, old = loader.position, new
    with make_loader(samples, **old) as loader:
        loader.seek(position)
        while loader.position.epoch == epoch:
            seen += copies([loader.next_step()])
        assert seen == expected_copies(samples, epoch)
        assert loader.position == Position(epoch + 1)
        following = copies(loader.next_step() for _ in range(loader.num_steps_per_epoch))
    assert following == expected_copies(samples, epoch + 1)


def test_replanning_with_equal_settings_changes_nothing_and_with_another_seed_starts_the_next_epoch():
    with make_loader(make_samples()) as loader:
        position = Position(2, {"64x64": 3}, 1)
        assert loader.replan(position, batch_size=3, accumulate=2, seed=5) is position
        assert loader.replan(position, batch_size=3, accumulate=2, seed=6) == Position(3)
        assert loader.replan(Position(2), batch_size=3, accumulate=2, seed=6) == Position(2)


def test_changed_data_start_the_next_epoch_unless_nothing_of_this_one_was_trained():
    assert Position(4, {}, 1).afresh() == Position(4, {"64x64": 2}).afresh() == Position(5)
    assert Position(4).afresh() == Position(4, {"64x64": 0}).afresh() == Position(4)


def test_steps_until_an_epoch_are_the_steps_that_are_then_made():
    with make_loader(make_samples()) as loader:
        loader.seek(loader.replan(Position(1, {}, 2), batch_size=2, accumulate=1, seed=5))
        loader.next_step()
        expected, num_steps = loader.num_steps_until(3), 0
        while loader.position.epoch < 3:
            loader.next_step()
            num_steps += 1
        assert num_steps == expected > loader.num_steps_per_epoch
        assert loader.num_steps_until(3) == loader.num_steps_until(1) == 0
        assert loader.num_steps_until(5) == 2 * loader.num_steps_per_epoch


@pytest.mark.parametrize(
    ("position", "said"),
    [
        (Position(0, {}, 10_000), "does not exist"),
        (Position(0, {"64x64": 10_000}, 0), "64x64 has"),
        (Position(0, {"8x8": 1}, 0), "8x8 has 0"),
    ],
)
def test_a_position_of_other_data_is_refused(position, said):
    with make_loader(make_samples()) as loader:
        for refused in (loader.seek, lambda p: loader.replan(p, batch_size=1, accumulate=1, seed=5)):
            with pytest.raises(ValueError, match=said):
                refused(position)
        assert loader.position == Position()


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"epoch": 0, "step": 0},
        {"epoch": -1, "consumed": {}, "step": 0},
        {"epoch": 0, "consumed": {}, "step": 0.5},
        {"epoch": True, "consumed": {}, "step": 0},
        {"epoch": 0, "consumed": [], "step": 0},
        {"epoch": 0, "consumed": {"64x64": -1}, "step": 0},
        {"epoch": 0, "consumed": {}, "step": 0, "more": 1},
    ],
)
def test_a_position_that_is_none_is_refused(values):
    with pytest.raises(ValueError, match="a position needs"):
        Position.from_dict(values)


def test_ranks_share_out_each_step_of_the_same_plan():
    samples = make_samples(30)
    with make_loader(samples, 2, 5) as whole:
        ranks = [make_loader(samples, 2, 5, rank=rank, world_size=3) for rank in range(3)]
        for _ in range(whole.num_steps_per_epoch + 2):
            step = shown(whole.next_step())
            shares = [shown(loader.next_step()) for loader in ranks]
            assert shares == [step[0::3], step[1::3], step[2::3]]
            assert {(loader.position.epoch, loader.position.step) for loader in ranks} == {
                (whole.position.epoch, whole.position.step)
            }
        for loader in ranks:
            loader.close()


class SlowCache:
    """The cache, slow at random, to shake the order of threads; fails where told."""

    def __init__(self, cache, seed=0, fails=lambda: False):
        self.cache, self.random, self.fails = cache, random.Random(seed), fails
        self.threads = set()

    def __contains__(self, name):
        return name in self.cache

    def get(self, name, flipped=False):
        self.threads.add(threading.current_thread().name)
        time.sleep(self.random.random() * 0.004)
        if self.fails():
            raise OSError(f"{name} is gone")
        return self.cache.get(name, flipped)

    def sizes(self, name, flipped=False):
        return self.cache.sizes(name, flipped)


def test_the_plan_does_not_depend_on_timing():
    samples = make_samples(10)
    with make_loader(samples) as loader:
        expected = [shown(loader.next_step()) for _ in range(8)]
    for seed in range(3):
        rng = random.Random(seed)
        with make_loader(samples, cache=SlowCache(make_cache(samples), seed)) as loader:
            for step in expected:
                time.sleep(rng.random() * 0.02)
                assert shown(loader.next_step()) == step


def test_the_next_step_is_loaded_while_this_one_is_trained():
    samples = make_samples(10)
    cache = SlowCache(make_cache(samples))
    with make_loader(samples, cache=cache) as loader:
        loader.next_step()
        loader._ahead.result(timeout=10)
        assert cache.threads == {"loader_0"}


def test_an_error_of_loading_surfaces_and_the_step_can_be_asked_for_again():
    samples = make_samples()
    broken = threading.Event()
    cache = SlowCache(make_cache(samples), fails=broken.is_set)
    with make_loader(samples) as loader:
        expected = [shown(loader.next_step()) for _ in range(4)]
    with make_loader(samples, cache=cache) as loader:
        assert shown(loader.next_step()) == expected[0]
        assert shown(loader.next_step()) == expected[1]
        loader._ahead.result(timeout=10)  # the third step is loaded before the fault
        broken.set()
        assert shown(loader.next_step()) == expected[2]
        position = loader.position
        with pytest.raises(OSError, match="is gone"):
            loader.next_step()
        assert loader.position == position
        broken.clear()
        assert shown(loader.next_step()) == expected[3]


def test_batches_are_normal_tensors_even_where_the_caller_is_in_inference_mode():
    with torch.inference_mode(), make_loader(make_samples()) as loader:
        assert not any(b.latents.is_inference() or b.weight.is_inference() for b in loader.next_step())


def test_close_ends_the_thread_and_may_be_repeated():
    before = threading.active_count()
    loader = make_loader(make_samples())
    loader.next_step()
    assert threading.active_count() == before + 1
    loader.close()
    loader.close()
    assert threading.active_count() == before


def test_loading_leaves_global_random_state_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate()
    with make_loader(make_samples()) as loader:
        loader.next_step()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_wrong_input_is_named():
    samples = make_samples()
    with pytest.raises(ValueError, match="no picture to train on"):
        make_loader([])
    with pytest.raises(ValueError, match=r"two samples are called set/0003.png"):
        make_loader([*samples, samples[3]])
    with pytest.raises(ValueError, match=r"set/0016.png has no latents"):
        make_loader(samples, cache=make_cache(samples[:-1]))
    with pytest.raises(ValueError, match=r"loop.accumulate must be at least the number of ranks \(4\), got 2"):
        make_loader(samples, rank=0, world_size=4)


class AnyCache:
    def __contains__(self, name):
        return True


def test_the_plan_of_a_hundred_thousand_pictures_is_small():
    samples = [make_sample(i, BUCKETS[i % 3], repeats=5) for i in range(100_000)]
    tracemalloc.start()
    try:
        with make_loader(samples, 4, 4, cache=AnyCache()) as loader:
            loader.seek(Position(3, {}, 1000))
            kept, peak = tracemalloc.get_traced_memory()
            assert loader.num_batches_per_epoch == 41_668 + 2 * 41_667
    finally:
        tracemalloc.stop()
    assert kept < 20e6
    assert peak < 60e6
