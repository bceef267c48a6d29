from .counter import power_counters as power_counters
from .draws import Component as Component, Draws as Draws, Joules as Joules
from .energy import Energy as Energy
from .of_steps import StepShare as StepShare, energy_of as energy_of
