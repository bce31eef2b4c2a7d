"""Learning-rate schedules: one string, one grammar, a pure function step -> rate.

    schedule = item , { "," , item } , [ "," ] ;
    item     = piece , [ ":" , end ]
             | count , "x" , "(" , schedule , ")" , [ "lengthen" , number ] , [ "decay" , number ] ;
    piece    = rate | rate , "->" , rate , [ curve ] ;
    curve    = name , [ "(" , number , ")" ] ;         a file of this folder; linear if left out
    end      = amount | "+" , amount | "-1" ;          absolute; or this item's length; or to the end of the run
    amount   = integer | integer , "ep" | number , "%" ;     steps, epochs, percent of the run
    rate     = decimal or scientific number, finite, >= 0 ;  spaces, case and full-width forms are free

`parse(text)` gives a `Schedule`, `Schedule.resolve(num_steps)` a `ResolvedSchedule`, and its `rate(step)` is what an
update uses: step is 0 for the first. Every error is a `ScheduleError`, with the place in the text and the fix.
"""

from .parser import ScheduleError
from .schedule import Piece, ResolvedSchedule, Schedule, parse

__all__ = ["Piece", "ResolvedSchedule", "Schedule", "ScheduleError", "parse"]
