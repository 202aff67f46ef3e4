import pytest

# They assert as tests do.
for module in ("losses", "purchases", "rebuilds"):
    pytest.register_assert_rewrite(f"simulation.protocol.orders.{module}")
