"""The schedule grammar: text -> syntax tree, errors with their place and the fix. The grammar is in `__init__.py`.

The tree is the text and nothing more. What depends on the length of the run (order of ends, percent, epochs) is
checked in schedule.py.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, NamedTuple, cast

from ..registry import CURVES
from .curve import Curve

MAX_CHARACTERS = 10_000
MAX_NESTING = 8
MAX_COUNT = 1_000_000
MAX_STEPS = 10**15  # far above any run, and exact in a float
MAX_NUMBER_CHARACTERS = 100

_TOKEN = re.compile(r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)|(?P<word>[a-z]+)|->|[-+,:%()]")
# Case is free. Input methods for Japanese and Chinese type full-width digits and signs, U+FF01 to U+FF5E.
_PLAIN = {code: chr(code).lower() for code in range(0x21, 0x7F)}
_PLAIN |= {code + 0xFEE0: character for code, character in _PLAIN.items()}
_INSTEAD = {
    "_": "write numbers without underscores",
    ";": "separate items with a comma",
    "*": "write 10 x ( ... )",
    "\u2192": "write ->",
}
_UNITS = 'steps (500), epochs ("3ep") or percent of the run ("10%")'


class ScheduleError(ValueError):
    """A schedule that cannot be used. The message has the place, what was got, and the fix; `column` counts from 1."""

    def __init__(self, problem: str, text: str, begin: int, end: int | None = None) -> None:
        self.column = begin + 1
        super().__init__(f"learning-rate schedule, column {self.column}, {excerpt(text, begin, end)}: {problem}")


def excerpt(text: str, begin: int, end: int | None = None) -> str:
    """text[begin:end] in quotes, on one line and short; without `end`, what follows `begin`."""
    part = text[begin:end].strip()
    if not part:
        return "at the end"
    part = part if len(part) <= 30 else part[:27] + "..."
    return 'at "' + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in part) + '"'


class End(NamedTuple):
    """Where an item ends."""

    amount: float
    unit: str  # "steps", "ep" or "%"
    is_length: bool  # counted from where the item begins; otherwise from the beginning of the run


class PieceItem(NamedTuple):
    """`rate`, or `rate -> rate curve`. Without an end it goes to the end of the run."""

    start: float
    stop: float
    curve: Curve
    end: End | None
    begin: int  # text[begin:finish] is this item
    finish: int


class RepeatItem(NamedTuple):
    """`num_cycles x ( items ) lengthen decay`."""

    num_cycles: int
    items: tuple[Item, ...]
    lengthen: float
    decay: float
    begin: int
    finish: int


Item = PieceItem | RepeatItem


class Token(NamedTuple):
    """A number, a word (lower case), a sign, or the end (empty text)."""

    kind: str  # "number", "word", "end", or the sign itself
    text: str
    begin: int
    finish: int


def syntax_tree(text: str) -> tuple[Item, ...]:
    """The items of `text`, at least one. Errors: `ScheduleError`."""
    if len(text) > MAX_CHARACTERS:
        problem = f"longer than {MAX_CHARACTERS:,} characters; shorten repeated items to 10 x ( ... )"
        raise ScheduleError(problem, text, MAX_CHARACTERS)
    return _Parser(text).schedule(None, 0)


def _tokens(text: str) -> list[Token]:
    plain = text.translate(_PLAIN)
    tokens, at = [], 0
    while at < len(plain):
        if plain[at].isspace():
            at += 1
            continue
        match = _TOKEN.match(plain, at)
        if match is None:
            fix = _INSTEAD.get(plain[at], "remove it")
            raise ScheduleError(f"this character does not belong in a schedule; {fix}", text, at)
        tokens.append(Token(match.lastgroup or match[0], match[0], at, match.end()))
        at = match.end()
    tokens.append(Token("end", "", len(text), len(text)))
    return tokens


class _Parser:
    """Recursive descent over the tokens; one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.index = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.index]

    def take(self) -> Token:
        self.index += 1
        return self.tokens[self.index - 1]

    def takes(self, kind: str, text: str | None = None) -> bool:
        """Go past the next token if it is this one."""
        found = self.next.kind == kind and text in (None, self.next.text)
        self.index += found
        return found

    def error(self, problem: str, token: Token | None = None) -> ScheduleError:
        return ScheduleError(problem, self.text, (token or self.next).begin)

    def schedule(self, opened: Token | None, depth: int) -> tuple[Item, ...]:
        """Items up to the end or to the parenthesis that closes `opened`. Empty ones are skipped, as in the WebUI."""
        items: list[Item] = []
        while True:
            while self.takes(","):
                pass
            if self.next.kind in ("end", ")"):
                break
            items.append(self.item(depth))
            if self.next.kind not in (",", "end", ")"):
                raise self.error(self.after_item())
        if self.next.kind == ")" and opened is None:
            raise self.error("this parenthesis closes nothing; remove it")
        if self.next.kind == "end" and opened is not None:
            raise self.error("this parenthesis is never closed; put a ) after the last item of the repeat", opened)
        if not items:
            raise self.error("no rate is given; write one, such as 1e-4", opened)
        return tuple(items)

    def after_item(self) -> str:
        if self.next.kind == ":":
            return "a second colon; an item is rate:end, and a comma goes between items"
        if self.next.kind == "->":
            return "a piece goes from one rate to one other; write a->b:+100, b->c:+100"
        if self.next.kind == "(":
            return "a parenthesis here needs a count before it; write 10 x ( ... )"
        return "not expected after an item; put a comma before a next item, or a colon before an end"

    def item(self, depth: int) -> Item:
        after = self.tokens[self.index + 1] if self.next.kind == "number" else self.next
        if after.kind == "word" and after.text == "x":
            return self.repeat(depth)
        return self.piece(depth)

    def repeat(self, depth: int) -> RepeatItem:
        begin = self.next
        if not self.takes("number"):
            raise self.error("a repeat needs a count; write 10 x ( ... )")
        self.take()
        count = self.whole(begin, "a count of repeats is a whole number", "10 x ( ... )")
        if not 1 <= count <= MAX_COUNT:
            raise self.error(f"repeats count from 1 to {MAX_COUNT:,}, got {count}; change the count", begin)
        opened = self.next
        if not self.takes("("):
            raise self.error("a parenthesis must follow the x; write 10 x ( ... )")
        if depth == MAX_NESTING:
            raise self.error(f"repeats are nested deeper than {MAX_NESTING}; write the inner ones out", opened)
        items = self.schedule(opened, depth + 1)
        self.take()
        factors: dict[str, float] = {}
        while self.next.kind == "word":
            word = self.take()
            if word.text not in ("lengthen", "decay"):
                raise self.error("only lengthen and decay can follow a repeat; write ) lengthen 2 decay 0.8", word)
            if word.text in factors:
                raise self.error(f"{word.text} is given twice; remove one", word)
            factors[word.text] = self.factor(word.text)
        if self.next.kind == ":":
            raise self.error("a repeat has no end; its length is count times what is inside; remove the end")
        finish = self.tokens[self.index - 1].finish
        return RepeatItem(count, items, factors.get("lengthen", 1.0), factors.get("decay", 1.0), begin.begin, finish)

    def factor(self, word: str) -> float:
        token = self.next
        value = self.number(f"{word} needs a number", f"{word} 0.8" if word == "decay" else f"{word} 2")
        if value == 0:
            raise self.error(f"{word} must be greater than 0, got 0; leave it out for no change", token)
        if word == "decay" and value > 1:
            raise self.error(f"decay must be at most 1, got {token.text}; 0.8 lowers the peak by a fifth", token)
        return value

    def piece(self, depth: int) -> PieceItem:
        begin = self.next
        start = stop = self.rate()
        curve = cast(type[Curve], CURVES.get("linear"))()
        if self.takes("->"):
            stop = self.rate()
            if self.next.kind == "word":
                curve = self.curve(start, stop)
        elif self.next.kind == "word":
            if self.next.text in CURVES.names():
                raise self.error(f"a curve needs two rates; write {begin.text}->0 {self.next.text}")
            raise self.error("not expected after a rate; write rate:end, or rate->rate curve:end")
        end = None
        if self.takes(":"):
            end = self.end(depth)
        elif depth:
            raise self.error("inside a repeat every item needs a length; write one such as :+100")
        return PieceItem(start, stop, curve, end, begin.begin, self.tokens[self.index - 1].finish)

    def rate(self) -> float:
        self.takes("+")  # as the WebUI allows
        if self.next.kind == "word" and self.next.text in ("nan", "inf", "infinity"):
            raise self.error(f"a rate must be finite, got {self.next.text}; write one such as 1e-4")
        return self.number("a rate is expected here", "1e-4")

    def curve(self, start: float, stop: float) -> Curve:
        name = self.take()
        try:
            entry = cast(type[Curve], CURVES.get(name.text))
        except ValueError as error:
            raise self.error(str(error), name) from None
        fields = dataclasses.fields(cast(Any, entry))
        example = f"{name.text}({', '.join('2' for _ in fields)})" if fields else name.text
        numbers = []
        if self.takes("("):
            while self.next.kind != ")":
                numbers.append(self.number(f"{name.text} has numbers in its parentheses", example))
                if not self.takes(",") and self.next.kind != ")":
                    raise self.error(f"the parenthesis of {name.text} is not closed; write {example}")
            self.take()
        if len(numbers) != len(fields):
            takes = f"{name.text} takes {len(fields) or 'no'} number{'s' * (len(fields) != 1)} in parentheses"
            raise self.error(f"{takes}, got {len(numbers)}; write {example}", name)
        try:
            curve = entry(*numbers)
            curve.check(start, stop)
        except ValueError as error:
            raise self.error(str(error), name) from None
        return curve

    def end(self, depth: int) -> End | None:
        first = self.next
        if self.takes("-"):
            is_one = self.takes("number", "1")
            if not is_one or self.next.kind in ("%", "word"):
                raise self.error("an end is not negative, except -1 for the end of the run; remove the minus", first)
            if depth:
                raise self.error("inside a repeat every item needs a length; write one such as +100", first)
            return None
        is_length = self.takes("+")
        end = self.amount(is_length)
        if depth and not is_length:
            written = self.text[first.begin : self.tokens[self.index - 1].finish]
            raise self.error(f"inside a repeat ends are lengths; write +{written}", first)
        return end

    def amount(self, is_length: bool) -> End:
        token = self.next
        value = self.number(f"an end is expected here ({_UNITS}, or -1)", "500")
        if self.takes("%"):
            return End(value, "%", is_length)
        if self.takes("word", "ep"):
            return End(self.whole(token, "epochs are whole numbers", "3ep, or a percentage"), "ep", is_length)
        if self.next.kind == "word":
            raise self.error(f'unknown unit "{self.next.text}"; write {_UNITS}')
        return End(self.whole(token, "steps are whole numbers", "500"), "steps", is_length)

    def whole(self, token: Token, expected: str, example: str) -> int:
        """The whole number that a number token is, at most MAX_STEPS."""
        if not token.text.isdigit():
            raise self.error(f"{expected}, got {token.text}; write {example}", token)
        if len(token.text) > MAX_NUMBER_CHARACTERS or int(token.text) > MAX_STEPS:
            raise self.error(f"no run is longer than {MAX_STEPS:,} steps; write a smaller number", token)
        return int(token.text)

    def number(self, expected: str, example: str) -> float:
        """A finite number >= 0."""
        token = self.take()
        if token.kind == "-":
            raise self.error(f"numbers here are 0 or more, got a minus; remove it, or write {example}", token)
        if token.kind != "number":
            raise self.error(f"{expected}, got {token.text or 'nothing'}; write {example}", token)
        if len(token.text) > MAX_NUMBER_CHARACTERS:
            raise self.error(f"this number has {len(token.text)} characters; write {example}", token)
        value = float(token.text)
        if not math.isfinite(value):
            raise self.error(f"numbers must be finite, got {token.text}; write {example}", token)
        return value
