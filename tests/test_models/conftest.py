"""Settings of these tests."""
import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def no_scope():
    """Types are looked up as in a fresh process: a Runner leaves its default scope behind."""
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()
