"""Draws are pure functions of (seed, name, visit, purpose)."""

import hashlib
import itertools
import math
import random
import threading

import numpy as np
import pytest
import torch
from sd_atelier.lib import draws

# Each draw as a function of its four keys, as plain numbers.
DRAWS = {
    "key": draws.key,
    "uniform_stream": lambda *k: list(itertools.islice(iter(draws.uniform_stream(*k), None), 5)),
    "permutation": lambda seed, name, visit, purpose: draws.permutation(40, seed, name, visit, purpose).tolist(),
    "noise": lambda seed, name, visit, purpose: draws.noise(seed, name, visit, (4, 5, 6), purpose).tolist(),
}


def test_key_follows_the_documented_bytes():
    text = (7).to_bytes(8, "little") + (3).to_bytes(8, "little") + (5).to_bytes(4, "little") + b"noise" + b"cats/a.jpg"
    expected = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") % 2**63
    assert draws.key(7, "cats/a.jpg", 3, "noise") == expected == 8882385045103965148


def test_draws_are_the_same_in_every_version_and_on_every_machine():
    # A change of these numbers breaks the resuming of every run made before it.
    assert draws.permutation(8, 1, "512x512", 0, "plan").tolist() == [6, 1, 7, 2, 3, 0, 4, 5]
    uniform = draws.uniform_stream(7, "cats/a.jpg", 3, "caption")
    assert [uniform() for _ in range(3)] == [0.9109729466300792, 0.46723128406518477, 0.4118234614498101]
    assert draws.position(7, "a", 3, 16, True) == 0.5438242989985156
    first = draws.noise(7, "cats/a.jpg", 3, (2, 2, 5)).flatten()[:4]
    assert torch.allclose(first, torch.tensor([0.36472696, 0.48002154, -0.79230106, -1.19736695]), atol=1e-6)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_part_of_the_key_changes_the_draw(draw):
    base = (1, "a", 2, "noise")
    others = [(2, "a", 2, "noise"), (1, "b", 2, "noise"), (1, "a", 3, "noise"), (1, "a", 2, "offset")]
    assert draw(*base) == draw(*base)
    values = [draw(*k) for k in (base, *others)]
    assert all(a != b for a, b in itertools.combinations(values, 2))


def test_purpose_and_name_do_not_run_into_each_other():
    assert draws.key(0, "b", 0, "a") != draws.key(0, "", 0, "ab") != draws.key(0, "ab", 0, "")


def test_undecodable_file_names_have_keys():
    assert draws.key(0, "caf\udce9.jpg", 0, "noise") != draws.key(0, "caf\udcea.jpg", 0, "noise")


def test_draws_neither_read_nor_move_global_random_state():
    def all_draws():
        values = [draw(3, "a", 1, "x") for draw in DRAWS.values()]
        return values, draws.position(3, "a", 1, 16, True), draws.coin(3, "a", 1, "flip")

    first = all_draws()
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 - the global state is what is tested
    random.seed(123)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    assert all_draws() == first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1][1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_noise_does_not_depend_on_threads_order_or_default_dtype():
    keys = [(5, f"picture {i}", i) for i in range(12)]
    expected = {k: draws.noise(*k, (4, 8, 8)) for k in keys}
    got = {}
    threads = [threading.Thread(target=lambda k=k: got.update({k: draws.noise(*k, (4, 8, 8))})) for k in reversed(keys)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    num_threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1 if num_threads > 1 else 2)
    try:
        again = {k: draws.noise(*k, (4, 8, 8)) for k in keys}
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(num_threads)
    for k in keys:
        assert expected[k].dtype == torch.float32
        assert torch.equal(expected[k], got[k])
        assert torch.equal(expected[k], again[k])


def test_noise_is_standard_normal():
    x = torch.stack([draws.noise(0, "a", i, (4, 32, 32)) for i in range(50)])
    num = x.numel()
    assert abs(x.mean().item()) < 4 / math.sqrt(num)
    assert abs(x.var().item() - 1) < 4 * math.sqrt(2 / num)


def test_uniforms_are_uniform_and_coins_are_fair():
    uniform = draws.uniform_stream(0, "a", 0, "test")
    values = np.array([uniform() for _ in range(10_000)])
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    heads = sum(draws.coin(0, "a", visit, "flip") for visit in range(10_000))
    assert abs(heads - 5_000) < 4 * 50


@pytest.mark.parametrize("length", [0, 1, 2, 7, 1000])
def test_permutation_has_each_index_once(length):
    order = draws.permutation(length, 0, "a", 0, "plan")
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(length))


def test_permutations_are_equally_likely():
    counts = {}
    for visit in range(6_000):
        order = tuple(draws.permutation(3, 0, "a", visit, "plan").tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert sum((n - 1000) ** 2 / 1000 for n in counts.values()) < 20.5  # 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize("strata", [1, 2, 5, 16, 1000])
def test_stratified_walk_visits_each_stratum_once_per_block(strata):
    num_blocks = 3 if strata < 100 else 1
    orders = []
    for block in range(num_blocks):
        us = [draws.position(9, "a", block * strata + i, strata, True) for i in range(strata)]
        assert all(0 < u < 1 for u in us)
        orders.append([math.floor(u * strata) for u in us])
        assert sorted(orders[-1]) == list(range(strata))
    if strata in (5, 16):
        assert orders[0] != orders[1]
        assert orders[0] != [math.floor(draws.position(9, "b", i, strata, True) * strata) for i in range(strata)]


def test_stratified_mean_over_a_block_is_within_half_a_stratum():
    us = [draws.position(0, "a", visit, 16, True) for visit in range(16)]
    assert abs(sum(us) / 16 - 0.5) < 0.5 / 16


def test_unstratified_positions_are_uniform_and_ignore_the_number_of_strata():
    us = np.array([draws.position(0, "a", visit, 16, False) for visit in range(5_000)])
    assert (us > 0).all()
    assert (us < 1).all()
    counts = np.histogram(us, bins=20, range=(0, 1))[0]
    assert ((counts - 250) ** 2 / 250).sum() < 43.8
    assert us[:50].tolist() == [draws.position(0, "a", visit, 4, False) for visit in range(50)]


def test_extreme_keys_stay_inside_the_open_interval(monkeypatch):
    for value in (0, 2**63 - 1):
        monkeypatch.setattr(draws, "key", lambda *_, value=value: value)
        for strata in (1, 3, 16, 1000):
            us = [draws.position(0, "a", visit, strata, True) for visit in range(strata)]
            assert min(us) > 0
            assert max(us) < 1
            assert sorted(math.floor(u * strata) for u in us) == list(range(strata))
