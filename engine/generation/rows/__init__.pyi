from .choosing import (
    Choosing as Choosing,
    TokenLogprobs as TokenLogprobs,
    chooses as chooses,
    choosing_for as choosing_for,
    samples as samples,
)
from .cut import RowsOfMicroBatch as RowsOfMicroBatch, by_length as by_length, cut_up as cut_up
from .ending import stops_of as stops_of
from .request import RowRequest as RowRequest
