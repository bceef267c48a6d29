"""What all tests share: helpers whose asserts explain themselves, and which tests are slow."""

import signal

import pytest

for helper in ("schedule_rules", "trace_rules"):
    pytest.register_assert_rewrite(helper)

SLOW = (
    "tests/golden/",  # forty commands …
    "tests/validation/test_campaign.py",  # runs and calibrates models
    "tests/engine/test_calibration.py",
    "tests/engine/test_engine_cli.py",
    "tests/engine/test_engine_tokens.py",
    "::TestHarness::",  # starts pytest in copies of a project
    "::TestCommand::",
    "::TestPublishedOrder::",
    "::TestPerfetto::",  # starts Perfetto's own engine
    "::TestRegret::",  # simulates every policy of a grid
    "::TestReplanned::",
    "::test_memory_does_not_grow_with_steps",
    "::test_the_examples_of_help_work",
    "::test_without_a_policy_each_schedule_gets_its_own_and_given_sizes_stay",
    "::test_what_more_of_each_resource_gives",
)
"""Parts of the names of tests that take some seconds: `tox -e quick` and `pytest -m "not slow"` leave them out."""

NOT_SLOW = ("[roofline-", "[compare-one-micro-batch]", "[compare-nothing-fits]", "[replay-", "[sweep-hrm]")
"""… but for these of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(part in item.nodeid for part in SLOW) and not any(part in item.nodeid for part in NOT_SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def interruptible():
    """Ctrl-C reaches this test and what it starts, even where whoever started the tests ignores it (as `nohup ... &`).

    A command that was started so goes on ignoring it: that is what its user asked for.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
