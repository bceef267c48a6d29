from .draws import drawn_uses as drawn_uses
from .use import Use as Use, expected_use as expected_use
