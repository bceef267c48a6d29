from .choosing import (
    Choosing as Choosing,
    chooses as chooses,
    choosing_for as choosing_for,
    samples as samples,
)
from .cut import RowsOfMicroBatch as RowsOfMicroBatch, by_length as by_length, cut_up as cut_up
from .ending import stops_of as stops_of
from .prompt_scores import kept_scores as kept_scores
from .request import RowRequest as RowRequest, TokenLogprobs as TokenLogprobs
