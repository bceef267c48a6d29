from .caps import PowerCap as PowerCap, add_power_cap as add_power_cap
from .front import Front as Front, FrontPoint as FrontPoint
from .picture import draw_front as draw_front
from .prices import (
    MONEY as MONEY,
    Prices as Prices,
    add_prices as add_prices,
)
from .report import print_money as print_money, print_speed_and_energy as print_speed_and_energy
from .under_caps import PlanUnderCaps as PlanUnderCaps, plan_under_caps as plan_under_caps
