"""The experiments of the paper, each by one command."""
from .experiment import Experiment, Run
from .index import EXPERIMENTS

__all__ = ['EXPERIMENTS', 'Experiment', 'Run']
