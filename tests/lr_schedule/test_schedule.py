"""What each form of the grammar means, against formulas written out here."""

import math
import random
from itertools import pairwise

import pytest
from sd_atelier.lib.lr_schedule import ScheduleError, parse


def rates(text, num_steps, **options):
    schedule = parse(text).resolve(num_steps, **options)
    return [schedule.rate(step) for step in range(schedule.num_steps)]


def linear(a, b, num_steps):
    return [a + (b - a) * s / num_steps for s in range(num_steps)]


def cosine(a, b, num_steps):
    return [b + (a - b) * 0.5 * (1 + math.cos(math.pi * s / num_steps)) for s in range(num_steps)]


def close(expected):
    return pytest.approx(expected, rel=1e-12, abs=1e-22)


# The examples, whole.


def test_a_bare_rate_is_constant():
    schedule = parse("5e-6").resolve(300)
    assert {schedule.rate(step) for step in range(301)} == {5e-6}
    assert schedule.notes == () and schedule.cycle_ends == () and len(schedule.pieces) == 1


def test_a_list_has_its_first_rate_up_to_the_step_before_its_first_end():
    got = rates("5e-6:2000, 5e-7:10000, 5e-8", 12_000)
    assert got == [5e-6] * 2000 + [5e-7] * 8000 + [5e-8] * 2000


def test_minus_one_is_the_end_of_the_run():
    assert rates("1e-3:10, 1e-4:-1", 25) == [1e-3] * 10 + [1e-4] * 15


def test_annealing_by_hand_equals_the_repeat():
    by_hand = ", ".join(f"5e-5:{n * 1000 + 100}, 5e-7:{n * 1000 + 1000}" for n in range(10))
    assert rates("10 x (5e-5:+100, 5e-7:+900)", 10_000) == rates(by_hand, 10_000)
    assert rates(by_hand, 10_000) == ([5e-5] * 100 + [5e-7] * 900) * 10


def test_warm_up_then_cosine():
    got = rates("0->1e-4:10%, 1e-4->0 cosine", 1000)
    assert got == close(linear(0, 1e-4, 100) + cosine(1e-4, 0, 900))
    assert got[0] == 0 and got[100] == 1e-4


def test_cosine_with_restarts_that_lengthen_and_decay():
    text = "5 x (1e-4->1e-6 cosine:+1000) lengthen 2 decay 0.8"
    expected = [rate for n in range(5) for rate in cosine(1e-4 * 0.8**n, 1e-6, 1000 * 2**n)]
    assert len(expected) == 31_000
    schedule = parse(text).resolve(31_000)
    assert [schedule.rate(step) for step in range(31_000)] == close(expected)
    assert schedule.cycle_ends == (1000, 3000, 7000, 15_000, 31_000)
    assert schedule.rate(31_000) == 1e-6


def test_restarts_with_a_warm_up_in_each():
    schedule = parse("4 x (0->1e-4:+50, 1e-4->1e-6 cosine:+450)").resolve(2000)
    expected = (linear(0, 1e-4, 50) + cosine(1e-4, 1e-6, 450)) * 4
    assert [schedule.rate(step) for step in range(2000)] == close(expected)
    assert schedule.cycle_ends == (500, 1000, 1500, 2000)


def test_epochs_then_exponential():
    got = rates("1e-4:3ep, 1e-4->1e-6 exp", 1000, steps_per_epoch=70)
    assert got == close([1e-4] * 210 + [1e-4 * (1e-6 / 1e-4) ** (s / 790) for s in range(790)])


def test_rex_then_constant():
    expected = [5e-5 + 5e-5 * (1 - s / 800) / (1 - s / 800 / 2) for s in range(800)] + [5e-5] * 200
    assert rates("1e-4->5e-5 rex:80%, 5e-5", 1000) == close(expected)


def test_polynomial():
    for power in (0.5, 1, 3):
        expected = [1e-6 + (2e-4 - 1e-6) * (1 - s / 50) ** power for s in range(50)]
        assert rates(f"2e-4->1e-6 poly({power})", 50) == close(expected)


def test_linear_is_the_curve_that_is_left_out():
    assert rates("3e-4->1e-4", 40) == rates("3e-4->1e-4 linear", 40) == close(linear(3e-4, 1e-4, 40))


# Ends.


def test_the_three_kinds_of_end():
    assert rates("1:3, 2:+2, 3:60%, 4:+10%, 5:4ep, 6", 10, steps_per_epoch=2) == [1, 1, 1, 2, 2, 3, 4, 5, 6, 6]


def test_a_length_in_epochs():
    assert rates("1:1, 2:+2ep, 3", 10, steps_per_epoch=3) == [1, 2, 2, 2, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("percent", "num_steps", "end"),
    [
        ("10", 1000, 100),
        ("10", 14, 1),
        ("10", 15, 2),
        ("10", 16, 2),
        ("12.5", 100, 13),
        ("0.05", 1000, 1),
        (".1", 1999, 2),
    ],
)
def test_a_percentage_is_rounded_to_the_nearest_step_and_halves_up(percent, num_steps, end):
    assert rates(f"1:{percent}%, 0", num_steps) == [1] * end + [0] * (num_steps - end)


def test_an_open_item_covers_what_is_left():
    assert rates("1:4, 2->0", 8) == [1, 1, 1, 1, 2, 1.5, 1, 0.5]


def test_spaces_and_case_and_full_width_forms_are_free():
    plain = rates("10x(1e-4->1e-6cosine:+10,1e-6:+5)lengthen2decay.5", 4000)
    spaced = " \t10 X ( 1E-4 -> 1E-6 COSINE : + 10 ,\n 1.0e-06 : + 5 ) Lengthen 2.0 Decay 0.5 , "
    assert rates(spaced, 4000) == plain
    full_width = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "\u3000" for c in spaced)
    assert rates(full_width, 4000) == plain
    assert rates("1:3EP,2", 9, steps_per_epoch=2) == [1] * 6 + [2] * 3


def test_the_order_of_lengthen_and_decay_is_free():
    assert rates("3 x (1->0:+4) decay 0.5 lengthen 2", 28) == rates("3 x (1->0:+4) lengthen 2 decay 0.5", 28)


def test_empty_items_and_trailing_commas_are_skipped():
    assert rates(",1:2,,2:4,,", 4) == rates("1:2,2:4", 4) == [1, 1, 2, 2]
    assert rates("2 x (1:+1, 2:+1,)", 4) == [1, 2, 1, 2]


# Repeats.


def test_lengths_in_cycle_n_are_rounded_halves_up_and_at_least_one_step():
    assert [p.end - p.first for p in parse("4 x (1:+3) lengthen 1.5").resolve(25).pieces] == [3, 5, 7, 10]
    assert [p.end - p.first for p in parse("6 x (1:+4) lengthen 0.5").resolve(10).pieces] == [4, 2, 1, 1, 1, 1]


def test_decay_never_goes_below_the_lowest_rate_of_the_group():
    schedule = parse("6 x (8->1:+2) decay 0.5").resolve(12)
    assert [piece.start for piece in schedule.pieces] == [8, 4, 2, 1, 1, 1]
    assert {piece.stop for piece in schedule.pieces} == {1}


def test_decay_lowers_the_highest_rate_wherever_it_stands_and_leaves_the_others_below_it():
    schedule = parse("4 x (0->8:+1, 8:+1, 8->3:+1, 3->1:+1) decay 0.5").resolve(16)
    ends = [[(p.start, p.stop) for p in schedule.pieces[4 * n : 4 * n + 4]] for n in range(4)]
    assert ends[0] == [(0, 8), (8, 8), (8, 3), (3, 1)]
    assert ends[1] == [(0, 4), (4, 4), (4, 3), (3, 1)]
    assert ends[2] == [(0, 2), (2, 2), (2, 2), (2, 1)]
    assert ends[3] == [(0, 1), (1, 1), (1, 1), (1, 1)]


def test_a_repeat_is_cut_at_the_end_of_the_run_and_that_is_said():
    schedule = parse("5 x (1->0:+10)").resolve(25)
    assert schedule.num_steps == 25 and schedule.cycle_ends == (10, 20)
    assert schedule.rate(24) == close(0.6) and schedule.rate(25) == close(0.5)
    (note,) = schedule.notes
    assert "longer than the run" in note and "column 1" in note and "step 25" in note


def test_a_cut_piece_keeps_its_own_pace():
    assert rates("1->0:10", 5) == close([1, 0.9, 0.8, 0.7, 0.6])


def test_a_repeat_inside_a_repeat_multiplies_the_lengths_and_the_peaks():
    schedule = parse("2 x (2 x (8->1:+2) lengthen 1.5 decay 0.5, 1:+1) lengthen 3 decay 0.5").resolve(24)
    assert [(p.end - p.first, p.start) for p in schedule.pieces] == [(2, 8), (3, 4), (1, 1), (6, 4), (9, 2), (3, 1)]
    assert schedule.cycle_ends == (2, 5, 6, 12, 21, 24)


def test_lengths_of_nested_repeats_are_rounded_once():
    # 3 * 1.5 * 1.5 = 6.75; rounding the outer factor first would give 5 * 1.5 = 7.5 -> 8
    schedule = parse("2 x (2 x (1:+3) lengthen 1.5) lengthen 1.5").resolve(20)
    assert [p.end - p.first for p in schedule.pieces] == [3, 5, 5, 7]


def test_a_cycle_that_the_run_cuts_has_not_ended():
    assert parse("2 x (1:+10, 3 x (1:+5))").resolve(10).cycle_ends == ()
    assert parse("2 x (3 x (1:+5))").resolve(10).cycle_ends == (5, 10)
    assert parse("2 x (3 x (1:+5), 1:+1)").resolve(15).cycle_ends == (5, 10, 15)


def test_absolute_ends_go_on_after_a_repeat():
    assert rates("2 x (1:+1, 2:+1), 3:6, 4", 8) == [1, 2, 1, 2, 3, 3, 4, 4]


def written_out(random_source, depth):
    """A group as text, and the same without repeats as a list of items with lengths."""
    text, items = [], []
    for _ in range(random_source.randint(1, 3)):
        if depth and random_source.random() < 0.4:
            count = random_source.randint(1, 4)
            inner_text, inner = written_out(random_source, depth - 1)
            text.append(f"{count} x ({inner_text})")
            items += inner * count
        else:
            a, b = (random_source.choice(["1e-4", "3e-5", "2e-6", "0.5"]) for _ in range(2))
            curve = random_source.choice(["", "cosine", "exp", "rex", "poly(1.5)"])
            piece = a if random_source.random() < 0.4 else f"{a}->{b} {curve}"
            item = f"{piece}:+{random_source.randint(1, 9)}"
            text.append(item)
            items.append(item)
    return ", ".join(text), items


def test_a_repeat_equals_the_list_written_out():
    source = random.Random(11)
    nested = 0
    for _ in range(300):
        text, items = written_out(source, depth=3)
        nested += text.count(" x ") > 1
        num_steps = source.randint(1, 120)
        short = parse(text).resolve(num_steps, stop_at_end=True)
        long = parse(",".join(items)).resolve(num_steps, stop_at_end=True)
        assert short.pieces == long.pieces and short.num_steps == long.num_steps
        assert [short.rate(s) for s in range(short.num_steps + 1)] == [long.rate(s) for s in range(long.num_steps + 1)]
    assert nested > 50


# The run.


def test_the_rate_is_a_pure_function_of_the_step():
    text = "0->1e-4:10%, 3 x (1e-4->1e-6 cosine:+100, 5e-5:+20) lengthen 1.3 decay 0.7, 1e-6->1e-7 exp"
    once = rates(text, 900)
    schedule = parse(text).resolve(900)
    order = list(range(900)) * 2
    random.Random(5).shuffle(order)
    assert all(schedule.rate(step) == once[step] for step in order)


def test_the_pieces_cover_the_run_without_gaps():
    schedule = parse("0->1e-4:10%, 9 x (1e-4->1e-6 cosine:+10, 5e-5:+2) lengthen 1.3, 1e-6").resolve(777)
    assert schedule.pieces[0].first == 0 and schedule.pieces[-1].end >= 777
    assert all(a.end == b.first for a, b in pairwise(schedule.pieces))


def test_one_past_the_end_is_the_last_rate_of_a_piece_that_ends_there():
    assert parse("1->0 cosine").resolve(10).rate(10) == 0
    assert parse("1:5, 0.5").resolve(10).rate(10) == 0.5
    assert parse("2 x (1->0.25:+5)").resolve(10).rate(10) == 0.25


def test_steps_outside_the_run_are_refused():
    schedule = parse("1").resolve(10)
    for step in (-1, 11):
        with pytest.raises(ValueError, match=f"step must be between 0 and 10, got {step}"):
            schedule.rate(step)


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"num_steps": -5}, {"num_steps": 5, "steps_per_epoch": 0}])
def test_a_run_without_steps_is_refused(options):
    with pytest.raises(ValueError, match="must be between 1 and"):
        parse("1").resolve(**options)


def test_a_list_that_is_longer_than_the_run_is_cut_and_that_is_said():
    schedule = parse("1:5, 2:20, 3:30, 4").resolve(10)
    assert [schedule.rate(step) for step in range(10)] == [1] * 5 + [2] * 5
    assert len(schedule.notes) == 2
    assert "column 6" in schedule.notes[0] and '"2:20"' in schedule.notes[0] and "step 10" in schedule.notes[0]
    assert "column 12" in schedule.notes[1] and '"3:30"' in schedule.notes[1]


def test_an_open_item_that_the_run_never_reaches_is_said():
    schedule = parse("1:10, 2").resolve(10)
    assert [schedule.rate(step) for step in range(11)] == [1] * 11
    (note,) = schedule.notes
    assert '"2"' in note and "column 7" in note


def test_a_schedule_that_fits_says_nothing():
    for text in ("1", "1:10", "1:4,2", "1:-1", "2 x (1:+5)"):
        assert parse(text).resolve(10).notes == ()


def test_stop_at_end_ends_the_run_where_the_schedule_ends():
    schedule = parse("1:5, 2->0:+4").resolve(100, stop_at_end=True)
    assert schedule.num_steps == 9
    assert [schedule.rate(step) for step in range(10)] == [1] * 5 + [2, 1.5, 1, 0.5, 0]
    with pytest.raises(ValueError, match="between 0 and 9"):
        schedule.rate(10)
    assert parse("3 x (1:+5)").resolve(100, stop_at_end=True).cycle_ends == (5, 10, 15)


def test_stop_at_end_changes_nothing_where_the_schedule_fills_the_run():
    for text in ("1:5, 2", "1->0:50", "9 x (1:+3) lengthen 2"):
        assert parse(text).resolve(20, stop_at_end=True) == parse(text).resolve(20)


def test_a_rate_is_found_fast_among_many_pieces():
    schedule = parse("5000 x (1:+1, 0:+1)").resolve(10_000)
    assert len(schedule.pieces) == 10_000
    assert [schedule.rate(step) for step in range(10_000)] == [1, 0] * 5000
    with pytest.raises(ScheduleError, match="more than 10,000 pieces"):
        parse("5001 x (1:+1, 0:+1)").resolve(10_001)


def test_huge_factors_and_ends_stay_finite():
    for text in (
        "9 x (1->0 cosine:+1) lengthen 1e300",
        "9 x (9 x (1:+1) lengthen 1e-300) lengthen 1e300",
        "2000 x (1->0 exp:+1)".replace("->0", "->1e-300") + " decay 1e-300",
        "2000 x (0->1:+1, 1->1e-9 exp:+1) decay 0.1",
        "1:1e300%",
        f"1->0:{10**15}",
    ):
        schedule = parse(text).resolve(2000)
        assert all(0 <= schedule.rate(step) <= 1 for step in range(2001))
