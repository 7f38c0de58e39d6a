"""Killed at random moments of the wall clock, again and again, a run still ends with the bytes of a straight one."""
from pathlib import Path

import pytest

from tests.random_kills import main
from tests.runs import needs_images


@needs_images
@pytest.mark.slow
def test_runs_killed_at_random_moments_end_as_straight_ones(tmp_path: Path) -> None:
    tally = main(tmp_path, kills=10, seed=0)
    assert tally.kills >= 10 and tally.resumes >= 5 and tally.in_checkpoint + tally.in_json >= 2
    assert min(tally.compared.values()) >= 1 and len(tally.compared) == 3
