from .band import (
    DRAWS as DRAWS,
    Band as Band,
    Range as Range,
    Share as Share,
    band_of as band_of,
    bands_of as bands_of,
)
from .sentences import WITHIN as WITHIN, in_sentences as in_sentences, stays_best as stays_best
from .spreads import LEVEL as LEVEL, SPREADS as SPREADS, Spreads as Spreads
from .unknowns import Unknown as Unknown, unknowns_of as unknowns_of, varied as varied
