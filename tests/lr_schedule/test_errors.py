"""Every fault of a schedule is one error with its place, what was got, and the fix."""

import pytest
from sd_atelier.lib.lr_schedule import ScheduleError, parse

# text, column (from 1), what the message must say
WRONG_TEXT = [
    ("", 1, "no rate is given; write one, such as 1e-4"),
    (" , ,", 5, "no rate is given"),
    ("1e-3:5:9", 7, "second colon; an item is rate:end"),
    ("-1e-4", 1, "0 or more, got a minus"),
    ("1e-4, -1e-4:100", 7, "0 or more, got a minus"),
    ("1->-1", 4, "0 or more, got a minus"),
    ("nan", 1, "must be finite, got nan; write one such as 1e-4"),
    ("1:5, inf", 6, "must be finite, got inf"),
    ("-inf", 1, "got a minus"),
    ("Infinity:100", 1, "must be finite, got infinity"),
    ("1e999", 1, "must be finite, got 1e999"),
    ("1->1e400", 4, "must be finite, got 1e400"),
    ("abc", 1, "a rate is expected here, got abc; write 1e-4"),
    (":100", 1, "a rate is expected here, got :"),
    ("1e-4->", 7, "at the end: a rate is expected here, got nothing"),
    ("1e-4:", 6, "at the end: an end is expected here"),
    ("1e-4:+", 7, "an end is expected here"),
    ("1e-4:x", 6, "an end is expected here"),
    ("1e-4:-5", 6, "an end is not negative, except -1 for the end of the run"),
    ("1e-4:-1%", 6, "an end is not negative"),
    ("1e-4:-1ep", 6, "an end is not negative"),
    ("1e-4:+-1", 7, "got a minus; remove it, or write 500"),
    ("1e-4:-", 6, "an end is not negative"),
    ("1e-4:1e3", 6, "steps are whole numbers, got 1e3; write 500"),
    ("1e-4:2.5", 6, "steps are whole numbers, got 2.5"),
    ("1e-4:2.5ep", 6, "epochs are whole numbers, got 2.5; write 3ep, or a percentage"),
    ("1e-4:3epochs", 7, 'unknown unit "epochs"; write steps'),
    ("1e-4:500s", 9, 'unknown unit "s"'),
    ("1e-4:99999999999999999", 6, "no run is longer than"),
    ("1:" + "9" * 5000, 3, "5000 characters"),
    ("9" * 5000, 1, "5000 characters"),
    ("9" * 5000 + " x (1:+1)", 1, "no run is longer than"),
    ("1_000", 2, "without underscores"),
    ("1:1_000", 4, "without underscores"),
    ("1;2", 2, "separate items with a comma"),
    ("1\u21922", 2, "write ->"),
    ("1e-4!", 5, "does not belong in a schedule; remove it"),
    ("1 000", 3, "put a comma before a next item, or a colon before an end"),
    ("1->2->3", 5, "from one rate to one other; write a->b:+100, b->c:+100"),
    ("1(2)", 2, "needs a count before it; write 10 x ( ... )"),
    ("1->0 cosin", 6, 'unknown curve "cosin"; did you mean "cosine"?'),
    ("1 cosine", 3, "a curve needs two rates; write 1->0 cosine"),
    ("1 steps", 3, "not expected after a rate"),
    ("1->0 exp", 6, "exp needs both rates above 0, got 1->0; write a small rate such as 1e-8"),
    ("0->1 exp", 6, "exp needs both rates above 0, got 0->1"),
    ("1->0 poly", 6, "poly takes 1 number in parentheses, got 0; write poly(2)"),
    ("1->0 poly()", 6, "poly takes 1 number in parentheses, got 0; write poly(2)"),
    ("1->0 poly(1,2)", 6, "poly takes 1 number in parentheses, got 2; write poly(2)"),
    ("1->0 poly(0)", 6, "poly needs a power above 0, got 0"),
    ("1->0 poly(-2)", 11, "got a minus; remove it, or write poly(2)"),
    ("1->0 poly(x)", 11, "poly has numbers in its parentheses, got x; write poly(2)"),
    ("1->0 poly(2", 12, "the parenthesis of poly is not closed; write poly(2)"),
    ("1->0 cosine(2)", 6, "cosine takes no numbers in parentheses, got 1; write cosine"),
    ("x (1:+5)", 1, "a repeat needs a count; write 10 x ( ... )"),
    ("0 x (1:+5)", 1, "count from 1 to 1,000,000, got 0"),
    ("1000001 x (1:+5)", 1, "count from 1 to 1,000,000, got 1000001"),
    ("1.5 x (1:+5)", 1, "a count of repeats is a whole number, got 1.5; write 10 x ( ... )"),
    ("3 * (1:+5)", 3, "write 10 x ( ... )"),
    ("3 x 1:+5", 5, "a parenthesis must follow the x"),
    ("3 x (1:+5", 5, "never closed; put a )"),
    ("3 x ()", 5, "no rate is given"),
    ("1:5)", 4, "closes nothing; remove it"),
    ("3 x (1)", 7, "inside a repeat every item needs a length; write one such as :+100"),
    ("3 x (1:-1)", 8, "inside a repeat every item needs a length; write one such as +100"),
    ("3 x (1:500)", 8, "inside a repeat ends are lengths; write +500"),
    ("3 x (1:50%)", 8, "inside a repeat ends are lengths; write +50%"),
    ("3 x (1:2ep)", 8, "inside a repeat ends are lengths; write +2ep"),
    ("3 x (1:+5):100", 11, "a repeat has no end"),
    ("3 x (1:+5) shorten 2", 12, "only lengthen and decay can follow a repeat"),
    ("3 x (1:+5) lengthen", 20, "lengthen needs a number, got nothing; write lengthen 2"),
    ("3 x (1:+5) lengthen 0", 21, "lengthen must be greater than 0, got 0"),
    ("3 x (1:+5) lengthen -2", 21, "got a minus; remove it, or write lengthen 2"),
    ("3 x (1:+5) decay inf", 18, "decay needs a number, got inf; write decay 0.8"),
    ("3 x (1:+5) decay 0", 18, "decay must be greater than 0, got 0"),
    ("3 x (1:+5) decay 1.5", 18, "decay must be at most 1, got 1.5"),
    ("3 x (1:+5) decay 0.5 decay 0.5", 22, "decay is given twice; remove one"),
    ("1 x (" * 9 + "1:+5" + ")" * 9, 45, "nested deeper than 8"),
    ("1:5," * 2501, 10_001, "longer than 10,000 characters; shorten repeated items to 10 x ( ... )"),
]

# text, column, what the message must say; on a run of 1000 steps with an unknown epoch
WRONG_ON_THE_RUN = [
    ("1:300", 1, "ends at step 300 and the run at step 1000; let this item go to the end of the run by :-1"),
    ("1:300, 2:400", 8, "ends at step 400 and the run at step 1000"),
    ("3 x (1:+100)", 1, "ends at step 300 and the run at step 1000; repeat it more often or add an open item after it"),
    ("1:300, 2:200, 3", 8, "the item ends at step 200, and the one before it ends at step 300; write a later end"),
    ("1:300, 2:300, 3", 8, "the item ends at step 300, and the one before it ends at step 300"),
    ("1:300, 2:20%, 3", 8, "the item ends at step 200, and the one before it ends at step 300"),
    ("5 x (1:+100), 2:400, 3", 15, "the item ends at step 400, and the one before it ends at step 500"),
    ("1:5000, 2:3000", 9, "the item ends at step 3000, and the one before it ends at step 5000"),
    ("1:5000, 2:6000, 3:5500", 17, "the item ends at step 5500, and the one before it ends at step 6000"),
    ("1:0, 2", 1, "a length of 0 steps; give it at least 1 step, or remove it"),
    ("1:5, 2:+0, 3", 6, "a length of 0 steps"),
    ("1:0%, 2", 1, "a length of 0 steps (0 % of 1000 steps, rounded)"),
    ("1:0.04%, 2", 1, "a length of 0 steps (0.04 % of 1000 steps, rounded)"),
    ("3 x (1:+0)", 6, "a length of 0 steps"),
    ("1:2000, 3 x (1:+5, 2 x (1:+0))", 25, "a length of 0 steps"),
    ("1, 2", 4, 'the item before it, at "1", goes to the end of the run; give that one an end such as :100'),
    ("1:-1, 2:500", 7, 'the item before it, at "1:-1", goes to the end of the run'),
    ("1->0 cosine, 3 x (1:+5)", 14, 'the item before it, at "1->0 cosine", goes to the end of the run'),
    ("1:2000, 2, 3", 12, "goes to the end of the run"),
    ("0,0001", 3, "goes to the end of the run"),
    ("1:3ep, 2", 1, "epochs need the number of steps per epoch, which is not known here; give it, or write steps"),
    ("3 x (1:+1ep)", 6, "epochs need the number of steps per epoch"),
]


@pytest.mark.parametrize(("text", "column", "says"), WRONG_TEXT, ids=lambda value: str(value)[:40])
def test_a_text_outside_the_grammar_is_refused_with_its_place_and_the_fix(text, column, says):
    with pytest.raises(ScheduleError) as error:
        parse(text)
    check(error.value, text, column, says)


@pytest.mark.parametrize(("text", "column", "says"), WRONG_ON_THE_RUN, ids=lambda value: str(value)[:40])
def test_a_schedule_that_does_not_fit_a_run_is_refused_with_its_place_and_the_fix(text, column, says):
    with pytest.raises(ScheduleError) as error:
        parse(text).resolve(1000)
    check(error.value, text, column, says)


def check(error, text, column, says):
    message = str(error)
    assert says in message
    assert error.column == column and f"column {column}," in message
    assert message.isprintable() and len(message) < 400
    place = text[column - 1 :].strip()
    assert f'at "{place[:3]}' in message if place else "at the end" in message


def test_a_message_is_one_printable_line_whatever_the_text():
    for text in ("1\n\x1b[31m2", "\ud800", "1:\u202e5", "\x00", "1 \u2028 \u00a0 y\r\n"):
        with pytest.raises(ScheduleError) as error:
            parse(text)
        assert str(error.value).isprintable()


def test_the_error_is_a_value_error():
    assert issubclass(ScheduleError, ValueError)


def test_a_schedule_that_ends_before_the_run_is_taken_when_it_may_stop_there():
    for text in ("1:300", "3 x (1:+100)"):
        assert parse(text).resolve(1000, stop_at_end=True).num_steps == 300


def test_the_other_faults_are_refused_also_when_it_may_stop_at_its_end():
    for text in ("1:300, 2:200", "1:0", "1, 2", "1:3ep"):
        with pytest.raises(ScheduleError):
            parse(text).resolve(1000, stop_at_end=True)
