from .critical_path import (
    DEPENDENCY as DEPENDENCY,
    CriticalPath as CriticalPath,
    Stretch as Stretch,
    cause_of as cause_of,
    find_critical_path as find_critical_path,
)
from .diff import (
    NAMED as NAMED,
    Account as Account,
    Diff as Diff,
    OpChange as OpChange,
    align as align,
    count_by_op as count_by_op,
    diff_traces as diff_traces,
)
from .power import PowerUse as PowerUse, power_of as power_of, power_series as power_series
from .summary import LaneUse as LaneUse, Summary as Summary, summarise as summarise
