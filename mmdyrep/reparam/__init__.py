"""Structural re-parameterization in pure PyTorch: works without any of the OpenMMLab libraries."""
from .block import Block
from .branches import BRANCHES, SPACES, resolve_space
from .eligible import Survey, fitting, survey
from .geometry import Geometry
from .initializing import STARTS, Drawn, Start, start_of
from .probe import probe
from .proof import examine
from .statistics import Measure, Statistics
from .structure import StructureError, blocks_of, depth_of, describe, ops_in_keys
from .surgery import expand, fold, fold_all, fused_copy, norm_behind, remove, to_structure

__all__ = [
    'BRANCHES', 'Block', 'Drawn', 'Geometry', 'Measure', 'SPACES', 'STARTS', 'Start', 'Statistics',
    'StructureError', 'Survey', 'blocks_of', 'depth_of', 'describe', 'examine', 'expand', 'fitting', 'fold',
    'fold_all', 'fused_copy', 'norm_behind', 'ops_in_keys', 'probe', 'remove', 'resolve_space', 'start_of',
    'survey', 'to_structure'
]
