"""From an augmented checkpoint and its config to those of the plain network."""
from .fusing import Report, fuse_checkpoint
from .plain_config import plain_config

__all__ = ['Report', 'fuse_checkpoint', 'plain_config']
