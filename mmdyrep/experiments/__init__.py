"""The experiments of the paper and studies of this package, each by one command."""
from .experiment import Experiment, Run, Study
from .index import EXPERIMENTS
from .studies import STUDIES

__all__ = ['EXPERIMENTS', 'STUDIES', 'Experiment', 'Run', 'Study']
