"""Which op grows, which branches go, and the statistics that keep training undisturbed; pure PyTorch."""
from .calibration import Calibration, NotReached, drift, eval_output
from .inputs import Inputs
from .metrics import METRICS, Metric, build_metric, name_of
from .policy import importance, pick, rank, redundant
from .saliency import Key, Moment, Op, Saliency

__all__ = [
    'Calibration', 'Inputs', 'Key', 'METRICS', 'Metric', 'Moment', 'NotReached', 'Op', 'Saliency', 'build_metric',
    'drift', 'eval_output', 'importance', 'name_of', 'pick', 'rank', 'redundant'
]
