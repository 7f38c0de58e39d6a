"""What blocks cost: time, kept bytes and memory against plain networks and blocks written plainly."""
from .cases import SECTIONS, Options
from .report import plot, print_report
from .running import run

__all__ = ['Options', 'SECTIONS', 'plot', 'print_report', 'run']
