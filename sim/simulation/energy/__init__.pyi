from .counter import power_counters as power_counters
from .draws import Component as Component, Draws as Draws, Joules as Joules, added as added
from .energy import Drawn as Drawn, Energy as Energy
from .of_steps import active_of as active_of, drawn_by as drawn_by, energy_of as energy_of
from .of_streams import StepDraws as StepDraws, StepJoules as StepJoules
