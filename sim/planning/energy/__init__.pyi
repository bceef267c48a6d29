from .caps import PowerCap as PowerCap, add_power_cap as add_power_cap
from .front import Front as Front, FrontPoint as FrontPoint
from .picture import draw_front as draw_front
from .prices import (
    MONEY as MONEY,
    Prices as Prices,
    add_prices as add_prices,
)
from .report import print_energy as print_energy, print_money as print_money
from .under_caps import PlanUnderCaps as PlanUnderCaps, plan_under_caps as plan_under_caps
