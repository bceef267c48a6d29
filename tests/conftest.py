"""What all tests share: helpers whose asserts explain themselves, and which tests are slow."""

import gc
import os
import signal

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("untimed")

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the real Hub for a name with a slash

for helper in ("plan_examples", "schedule_rules", "stream_examples", "trace_rules"):
    pytest.register_assert_rewrite(helper)

SLOW = (
    "tests/golden/",  # forty commands …
    "tests/fuzz/",  # five hundred of them
    "tests/validation/test_campaign.py",  # runs and calibrates models
    "tests/engine/test_calibration.py",
    "tests/engine/test_engine_cli.py",
    "tests/engine/test_engine_tokens.py",
    "tests/repository/test_schemas.py",  # runs every command
    "::TestHarness::",  # starts pytest in copies of a project
    "::TestCommand::",
    "::TestPublishedOrder::",
    "::TestPerfetto::",  # starts Perfetto's own engine
    "::TestRegret::",  # simulates every policy of a grid
    "::TestReplanned::",
    "::TestWords::",
    "::TestRooflineCommand::",  # draws
    "::TestRoundTrip::",
    "::test_a_fit_finds_the_values_that_made_the_rows",
    "::test_a_program_is_the_tasks_of_the_schedule",
    "::test_ctrl_c_keeps_rows_and_resume_goes_on",
    "::test_equals_float64_for_any_shape_and_any_padding",
    "::test_every_row_is_predicted",
    "::test_half_precision_is_summed_in_float32",
    "::test_lanes_are_busy_for_no_longer_than_the_makespan",
    "::test_memory_does_not_grow_with_steps",
    "::test_nothing_is_simulated_to_be_faster",
    "::test_sharing_between_long_tasks_of_any_length_is_to_the_nanosecond",
    "::test_the_examples_of_help_work",
    "::test_the_examples_of_the_library_run",
    "::test_what_more_of_each_resource_gives",
    "::test_with_a_hand_over_steps_are_those_of_simpy",
    "::test_with_sharing_steps_are_those_of_simpy",
    "::test_without_a_policy_each_schedule_gets_its_own_and_given_sizes_stay",
)
"""Parts of the names of tests that take some seconds: `tox -e quick` and `pytest -m "not slow"` leave them out."""

NOT_SLOW = ("[roofline-", "[compare-one-micro-batch]", "[compare-nothing-fits]", "[replay-", "[sweep-hrm]")
"""… but for these of them."""

LONGEST = (
    "tests/golden/test_golden.py",
    "tests/engine/test_async_runs.py",
    "tests/validation/test_gpu.py",
    "tests/engine/test_engine_tokens.py",
    "tests/engine/host/test_host_experts.py",  # where nothing is compiled yet
    "tests/engine/test_calibration.py",
    "tests/engine/test_engine_memory.py",
    "tests/validation/test_campaign.py",
    "tests/engine/test_packed_experts.py",
    "tests/sim/simulation/test_fastpath.py",
)
"""The files that take longest, before all others: one that began last would leave the other processes idle."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if any(part in item.nodeid for part in SLOW) and not any(part in item.nodeid for part in NOT_SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: _place_in_order(item.nodeid.partition("::")[0]))
    if "exhaustive" not in config.getoption("markexpr"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)


def _place_in_order(file: str) -> int:
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


@pytest.fixture(autouse=True, scope="session")
def as_wide_as_without_a_terminal():
    """Workers of pytest-xdist are told of 80 columns, which no report without a terminal has by itself."""
    os.environ.pop("COLUMNS", None)


@pytest.fixture(autouse=True, scope="module")
def nothing_old_is_collected():
    """Collecting garbage looks at what a file's tests made, not at the million objects of everything before them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def interruptible():
    """Ctrl-C reaches this test and what it starts, even where whoever started the tests ignores it (as `nohup ... &`).

    A command that was started so goes on ignoring it: that is what its user asked for.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
