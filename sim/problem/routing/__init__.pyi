from .choice import Floats as Floats
from .draws import drawn_uses as drawn_uses
from .histogram import Histogram as Histogram, LayerHistogram as LayerHistogram, TokenCounts as TokenCounts
from .lru import lru_hit_rate as lru_hit_rate
from .routing import UNIFORM as UNIFORM, Routing as Routing
from .use import Use as Use, expected_padding as expected_padding, expected_use as expected_use
