"""Lists without a fault mean here what they mean in the WebUI's own training.

Its reading, stated once more: items stand between commas, empty ones count for nothing; an item is a rate and the step
before which it ends, counted from the beginning of the run; -1, no step and a step past the run all mean the run's end.
Step s, counted from 0, is trained at the rate of the first item that ends after s; training stops where there is none.
"""

import random

import pytest
from sd_atelier.lib.lr_schedule import parse

RATES = ["5e-5", "5E-06", "0.0005", ".5e-4", "5.", "1e-3", "0", "0.0", "+1e-4", "1e+0", "007", "2.5e-07"]


def webui_rates(text, max_steps):
    """The rate of each trained step."""
    items = [[part.strip() for part in item.split(":")] for item in text.split(",") if item.strip()]
    ends = [max_steps if len(item) == 1 or item[1] == "-1" else int(item[1]) for item in items]
    rates = []
    for step in range(max_steps):
        reached = [float(item[0]) for item, end in zip(items, ends, strict=True) if step < end]
        if not reached:
            break
        rates.append(reached[0])
    return rates


def random_list(source, num_items):
    """A list with rising ends, the last one perhaps open, in any of the spellings that the WebUI reads."""

    def space():
        return source.choice(["", "", "", " ", "  ", "\t", "\n", "\u3000"])

    end, parts = 0, []
    for index in range(num_items):
        end += source.choice([1, 1, 2, 7, source.randint(1, 200)])
        is_last = index == num_items - 1
        written = source.choice(["", ":-1", f":{end}"]) if is_last else f":{end}"
        if written.startswith(":"):
            zeros = "0" * source.choice([0, 0, 0, 1]) if written != ":-1" else ""
            written = space() + ":" + space() + zeros + written[1:]
        parts.append(space() + source.choice(RATES) + written + space())
        while source.random() < 0.1:
            parts.append(space())
    if source.random() < 0.2:
        parts.insert(0, "")
    return ",".join(parts), end


def test_generated_lists():
    source = random.Random(3)
    stopped = longest = cut = 0
    for _ in range(1500):
        num_items = source.choice([1, 2, 3, 5, 12, source.randint(39, 80)])
        text, end = random_list(source, num_items)
        max_steps = max(1, source.choice([end, end + 1, end - 1, end // 2, end + source.randint(0, 300)]))
        expected = webui_rates(text, max_steps)
        schedule = parse(text).resolve(max_steps, stop_at_end=True)
        assert schedule.num_steps == len(expected)
        assert [schedule.rate(step) for step in range(schedule.num_steps)] == expected
        stopped += len(expected) < max_steps
        longest = max(longest, num_items)
        cut += max_steps < end
    assert stopped > 50 and longest > 60 and cut > 100


@pytest.mark.parametrize("num_items", [39, 40, 120, 500])
def test_long_lists_of_annealing_by_hand(num_items):
    text = ", ".join(f"{('5e-5', '5e-6', '5e-7')[n % 3]}:{100 * (n + 1)}" for n in range(num_items))
    schedule = parse(text).resolve(100 * num_items)
    assert [schedule.rate(step) for step in range(100 * num_items)] == webui_rates(text, 100 * num_items)
    assert len(schedule.pieces) == num_items


@pytest.mark.parametrize(
    ("text", "max_steps", "expected"),
    [
        ("5e-6:2, 5e-7:5, 5e-8", 7, [5e-6] * 2 + [5e-7] * 3 + [5e-8] * 2),
        ("1e-3:3, 1e-4:-1", 5, [1e-3] * 3 + [1e-4] * 2),
        ("1:3,,2:5,", 5, [1, 1, 1, 2, 2]),
        ("1:3, 2:50, 3:60", 5, [1, 1, 1, 2, 2]),
        ("1:5, 2", 5, [1] * 5),
        ("1:3", 5, [1] * 3),
    ],
)
def test_the_reading_itself(text, max_steps, expected):
    assert webui_rates(text, max_steps) == expected
    schedule = parse(text).resolve(max_steps, stop_at_end=True)
    assert [schedule.rate(step) for step in range(schedule.num_steps)] == expected
