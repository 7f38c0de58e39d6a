"""Settings of all tests."""
import torch
from hypothesis import HealthCheck, settings

settings.register_profile('fixed', derandomize=True, deadline=None, max_examples=40, print_blob=True,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.load_profile('fixed')

torch.set_num_threads(1)


def pytest_runtest_setup() -> None:
    """Every test draws the same, whichever ran before."""
    torch.manual_seed(0)
