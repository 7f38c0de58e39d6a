"""The experiments of the paper, each by one command."""
from .index import EXPERIMENTS, Experiment, Run

__all__ = ['EXPERIMENTS', 'Experiment', 'Run']
