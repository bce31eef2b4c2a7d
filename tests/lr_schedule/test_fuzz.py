"""No text can do worse than be refused: only ScheduleError, and quickly."""

import gc
import math
import random
import time

import pytest
from sd_atelier.lib.lr_schedule import ScheduleError, parse

LIMIT_S = 0.05
WORDS = [
    *["1e-4", "5e-6", "0", "1", ".5", "2.", "1e-300", "1e308", "1e999", "nan", "inf", "-1", "+1", "1_0", "9" * 19],
    *[",", ",", ",", ":", ":", "->", "->", "+", "-", "%", "ep", "x", "(", ")", "10%", "3ep", "+100", ":-1", "10x("],
    *["linear", "cosine", "exp", "rex", "poly", "poly(2)", "lengthen", "decay", "\n", "\x00", "\u3000", "\uff11", "_"],
]
SEEDS = [
    "5e-6:2000, 5e-7:10000, 5e-8",
    "1e-3:10, 1e-4:-1",
    "10 x (5e-5:+100, 5e-7:+900)",
    "0->1e-4:10%, 1e-4->0 cosine",
    "5 x (1e-4->1e-6 cosine:+1000) lengthen 2 decay 0.8",
    "4 x (0->1e-4:+50, 1e-4->1e-6 cosine:+450)",
    "1e-4:3ep, 1e-4->1e-6 exp",
    "1e-4->5e-5 rex:80%, 5e-5",
    "3 x (2 x (1e-4->1e-6 poly(2):+10) lengthen 1.5, 1e-5:+1ep) decay 0.5, 1e-6",
]


def grammatical(source, depth=0):
    """A text that is often right."""

    def number():
        return source.choice(["1e-4", "5E-7", ".5", "3", "0.001", "1e308", "5e-324"])

    def end():
        amount = source.choice(["1", "7", "100", "2500", "10%", "0.5 %", "300%", "1ep", "2 EP"])
        return source.choice([":+", " : + ", ":" if depth == 0 and source.random() < 0.1 else ":+"]) + amount

    def item():
        if depth < 4 and source.random() < 0.25:
            factors = source.choice(["", " lengthen 2", " decay 0.9", "lengthen 0.3 decay .5", " lengthen 1e200"])
            return f"{source.choice([1, 2, 5, 300, 999999])} x ({grammatical(source, depth + 1)}){factors}"
        curve = source.choice(["", "", "cosine", "exp", "rex", "linear", "poly(2)", "poly(1e300)"])
        return number() + (f"->{number()} {curve}" if source.random() < 0.6 else "") + end()

    items = [item() for _ in range(source.randint(1, 6))]
    if depth == 0 and source.random() < 0.8:
        items.append(number() + source.choice(["", ":-1", "->0", "->0 cosine"]))
    return source.choice([",", ", ", " , "]).join(items)


def mutated(source, text):
    for _ in range(source.randint(1, 4)):
        at, to = sorted(source.randint(0, len(text)) for _ in range(2))
        action = source.randrange(5)
        if action == 0:
            text = text[:at] + source.choice(WORDS) + text[at:]
        elif action == 1:
            text = text[:at] + text[to:]
        elif action == 2:
            text = text[:to] + text[at:to] * source.choice([1, 3]) + text[to:]
        elif action == 3:
            text = text[:at] + chr(source.choice([source.randrange(128), source.randrange(0x110000)])) + text[at + 1 :]
        else:
            text = text[:at] + text[at:to].upper()[::-1] + text[to:]
    return text


def fuzzed(source):
    kind = source.randrange(5)
    if kind == 0:
        return source.randbytes(source.randint(0, 200)).decode("latin-1")
    if kind == 1:
        return source.randbytes(source.randint(0, 200)).decode("utf-8", "surrogateescape")
    if kind == 2:
        return source.choice(["", " "]).join(source.choice(WORDS) for _ in range(source.randint(1, 40)))
    if kind == 3:
        return grammatical(source)
    return mutated(source, source.choice([source.choice(SEEDS), grammatical(source)]))


def outcome(text, num_steps, steps_per_epoch, stop_at_end):
    """What became of the text, and the seconds of processor time it took."""
    begin = time.thread_time()
    try:
        schedule = parse(text).resolve(num_steps, steps_per_epoch, stop_at_end)
        steps = {0, schedule.num_steps // 3, schedule.num_steps - 1, schedule.num_steps}
        rates = [schedule.rate(step) for step in steps]
    except ScheduleError as error:
        assert str(error).isprintable()
        return "refused", time.thread_time() - begin
    seconds = time.thread_time() - begin
    assert 1 <= schedule.num_steps <= num_steps
    assert all(math.isfinite(rate) and rate >= 0 for rate in rates)
    assert all(0 < step <= schedule.num_steps for step in schedule.cycle_ends)
    return "taken", seconds


def test_ten_thousand_fuzzed_texts_give_a_schedule_or_a_schedule_error_within_50_ms():
    source = random.Random(20)
    outcomes = {"taken": 0, "refused": 0}
    slowest = (0.0, "")
    parse("1")
    gc.collect()
    for _ in range(10_000):
        text = fuzzed(source)
        run = (source.choice([1, 2, 100, 23_800, 10**8]), source.choice([None, 1, 793]), source.random() < 0.5)
        what, seconds = outcome(text, *run)
        if seconds > LIMIT_S:  # once more: what interrupts a process counts too
            seconds = min(outcome(text, *run)[1] for _ in range(3))
        outcomes[what] += 1
        slowest = max(slowest, (seconds, text))
    assert slowest[0] < LIMIT_S, slowest
    assert outcomes["taken"] > 800 and outcomes["refused"] > 3000


LONGEST = {
    "commas": "," * 10_000,
    "open items": "1," * 5000,
    "rising ends": ",".join(f"1:{end}" for end in range(1, 1500)),
    "lengths": "1:+1," * 2000,
    "arrows": "1->" * 3333,
    "parentheses": "(" * 10_000,
    "repeats": "1 x (" * 2000,
    "digits": "9" * 10_000,
    "digits with a point": "1." + "9" * 9998,
    "exponent": "1e" + "9" * 9998,
    "spaces": " " * 9999 + "1",
    "minus": "-" * 10_000,
    "full width": "\uff11" * 10_000,
    "too long": "1:+1," * 1_000_000,
    "cycles": "1000000 x (1->0 cosine:+1) lengthen 1.0001 decay 0.999",
    "percent": "1000000 x (1->0 rex:+0.001%, 1:+1) decay 0.999",
    "nested cycles": "1000000 x (" * 8 + "1->0 cosine:+1" + ") lengthen 0.5 decay 0.9" * 8,
    "nested large groups": "9 x (" * 8 + ",".join(["2->1 cosine:+1"] * 600) + ") decay 0.9" * 8,
    "many repeats": "999999x(1:+1)decay.9," * 470,
}


@pytest.mark.parametrize("name", LONGEST)
@pytest.mark.parametrize("num_steps", [1, 10_000, 10**9])
def test_the_worst_texts_take_less_than_50_ms(name, num_steps):
    parse("1")
    gc.collect()
    assert min(outcome(LONGEST[name], num_steps, 7, True)[1] for _ in range(3)) < LIMIT_S


def test_the_values_of_every_step_are_finite_in_what_is_taken():
    source = random.Random(21)
    taken = 0
    for _ in range(400):
        try:
            schedule = parse(grammatical(source)).resolve(150, 4, stop_at_end=True)
        except ScheduleError:
            continue
        taken += 1
        rates = [schedule.rate(step) for step in range(schedule.num_steps + 1)]
        assert all(math.isfinite(rate) and rate >= 0 for rate in rates)
    assert taken > 150
