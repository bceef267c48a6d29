"""What all tests share."""

import signal

import pytest

for helper in ("schedule_rules", "trace_rules"):
    pytest.register_assert_rewrite(helper)


@pytest.fixture
def interruptible():
    """Ctrl-C reaches this test and what it starts, even where whoever started the tests ignores it (as `nohup ... &`).

    A command that was started so goes on ignoring it: that is what its user asked for.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
