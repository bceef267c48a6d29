from .check import (
    Measurement as Measurement,
    Speed as Speed,
    check_measured as check_measured,
    print_check as print_check,
    read_measurements as read_measurements,
    read_run_setting as read_run_setting,
)
from .comparison import (
    SIZES as SIZES,
    Asked as Asked,
    Comparison as Comparison,
    Outcome as Outcome,
    compare as compare,
    usual_setup as usual_setup,
)
from .page import comparison_page as comparison_page
from .picture import draw as draw
from .report import (
    known as known,
    numbers as numbers,
    print_comparison as print_comparison,
    print_hardware as print_hardware,
    print_known as print_known,
)
from .streams import (
    Served as Served,
    ServedComparison as ServedComparison,
    compare_served as compare_served,
    draw_served as draw_served,
    print_served as print_served,
    served_by as served_by,
)
