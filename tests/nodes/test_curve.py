"""The curve that a browser draws: its points lie on the schedule, and corners are among them."""

import pytest
from sd_atelier.lib.lr_schedule import parse
from sd_atelier.nodes.curve import MAX_POINTS, answer, points

SCHEDULES = [
    "1e-4",
    "0->1e-4:10%, 1e-4->0 cosine",
    "10 x (5e-5:+100, 5e-7:+900)",
    "100 x (1e-4->1e-6 cosine:+10)",
    "1e-3:1, 1e-4",
]


@pytest.mark.parametrize("text", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 7, 1000, 100_000])
def test_the_points_are_those_of_the_schedule_and_not_too_many(text, num_steps):
    try:
        schedule = parse(text).resolve(num_steps, stop_at_end=True)
    except ValueError:
        pytest.skip("no schedule for a run of this length")
    drawn = points(schedule, factor=2.0)
    steps = [step for step, _ in drawn]
    assert steps == sorted(steps)
    assert len(drawn) <= MAX_POINTS + 2
    assert steps[0] == 0
    assert all(rate >= 0 for _, rate in drawn)
    pieces = {piece.first: piece for piece in schedule.pieces}
    for step, rate in drawn:
        if step in pieces and (step == 0 or drawn[steps.index(step)][1] != rate):
            assert rate == pytest.approx(2 * pieces[step].rate(step))


def test_an_answer_says_where_the_fault_is():
    found = answer({"schedule": "1e-4, x", "steps": 100})["error"]
    assert (found["setting"], found["column"]) == ("schedule", 7)
    assert answer({"schedule": "1e-4", "text_encoder": "y", "steps": 100})["error"]["setting"] == "text_encoder"


def test_a_text_encoder_has_a_curve_of_its_own():
    found = answer({"schedule": "1e-4", "text_encoder": "1e-5", "steps": 100})
    assert (found["highest"], found["text_encoder"]["highest"]) == (1e-4, 1e-5)


@pytest.mark.parametrize(
    "asked",
    [
        {"schedule": 1},
        {"schedule": "1e-4", "steps": "9"},
        {"schedule": "1e-4", "steps": True},
        {"schedule": "1e-4", "factor": "x"},
    ],
)
def test_a_question_of_the_wrong_kind_is_refused(asked):
    with pytest.raises(ValueError, match="wrong kind"):
        answer(asked)
