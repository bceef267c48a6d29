"""What all tests share."""

import pytest

for helper in ("schedule_rules", "trace_rules"):
    pytest.register_assert_rewrite(helper)
