"""The configs of the repository, and where two of them differ."""
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List

from mmengine.config import Config

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'


def all_configs() -> List[str]:
    """Paths below configs/ of every config that can be run."""
    return sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)


@lru_cache(maxsize=None)
def read(name: str) -> Config:
    """A config of this repository; do not change it."""
    return Config.fromfile(CONFIGS / name)


def flat(value: Any, path: str = '') -> Dict[str, Any]:
    """Leaves of a nested config by their paths; mmengine's notes on where a dict came from are left out."""
    if hasattr(value, 'to_dict'):
        value = value.to_dict()
    if isinstance(value, dict):
        items = [(f'{path}.{key}' if path else str(key), item) for key, item in value.items() if key != '_scope_']
    elif isinstance(value, (list, tuple)):
        items = [(f'{path}[{place}]', item) for place, item in enumerate(value)]
    else:
        return {path: value}
    leaves = {key: leaf for where, item in items for key, leaf in flat(item, where).items()}
    return leaves or {path: value}


def differing(left: Any, right: Any) -> List[str]:
    """Paths of all leaves that only one of two configs has or that differ."""
    left, right = flat(left), flat(right)
    missing = object()
    return sorted(key for key in {*left, *right} if left.get(key, missing) != right.get(key, missing))
