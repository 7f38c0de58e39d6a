"""Which op grows, which branches go, and the statistics that keep training undisturbed; pure PyTorch."""
from .calibration import Calibration, drift, eval_output
from .policy import importance, pick, rank, redundant
from .saliency import METRICS, Moment, Op, Saliency

__all__ = [
    'Calibration', 'METRICS', 'Moment', 'Op', 'Saliency', 'drift', 'eval_output', 'importance', 'pick', 'rank',
    'redundant'
]
