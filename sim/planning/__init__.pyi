from .energy import (
    MONEY as MONEY,
    Front as Front,
    FrontPoint as FrontPoint,
    PowerCap as PowerCap,
    Prices as Prices,
    add_power_cap as add_power_cap,
    add_prices as add_prices,
    draw_front as draw_front,
    plan_under_caps as plan_under_caps,
    print_money as print_money,
    print_speed_and_energy as print_speed_and_energy,
)
from .explanation import Explanation as Explanation, explain as explain
from .export import (
    TARGETS as TARGETS,
    Exported as Exported,
    checkpoint_of as checkpoint_of,
    export_plan as export_plan,
    memory_section as memory_section,
    plan_page as plan_page,
    predictions_table as predictions_table,
    print_exported as print_exported,
    timelines_section as timelines_section,
)
from .picture import draw as draw
from .policies import (
    PolicyGrid as PolicyGrid,
    most_locked as most_locked,
    remarks as remarks,
    usually_locked as usually_locked,
)
from .report import (
    DURATIONS as DURATIONS,
    PEAKS as PEAKS,
    SPEEDS as SPEEDS,
    headline as headline,
    in_short as in_short,
    peaks_gb as peaks_gb,
    print_plan as print_plan,
    seconds as seconds,
    speeds as speeds,
    title as title,
)
from .search import (
    Candidate as Candidate,
    Choice as Choice,
    NothingFitsError as NothingFitsError,
    Objective as Objective,
    best_policy as best_policy,
    hrm_plan as hrm_plan,
    plan as plan,
)
from .streams import (
    PROMPTS_IN_WORDS as PROMPTS_IN_WORDS,
    Flow as Flow,
    StreamChoice as StreamChoice,
    StreamPlan as StreamPlan,
    Way as Way,
    best_stream_policy as best_stream_policy,
    plan_stream as plan_stream,
    print_stream_plan as print_stream_plan,
)
