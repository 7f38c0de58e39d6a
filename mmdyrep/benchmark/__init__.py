"""What blocks cost: time, kept bytes and memory against plain networks and blocks written plainly."""
from .cases import SECTIONS, Options
from .networks import NETWORKS
from .report import markdown, plot, print_report
from .running import run

__all__ = ['NETWORKS', 'Options', 'SECTIONS', 'markdown', 'plot', 'print_report', 'run']
