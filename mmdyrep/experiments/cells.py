"""What stands in the cells of the tables of results."""
from typing import Any, Mapping

from mmdyrep.engine.report import human


def accuracy(value: Mapping[str, float]) -> str:
    """Mean and, over several seeds, sample deviation."""
    return f'{value["mean"]:.2f}' + (f' ± {value["deviation"]:.2f}' if 'deviation' in value else '')


def cost(entry: Mapping[str, Any], key: str) -> str:
    """Mean MACs or parameters; a dash where none were counted."""
    return human(entry[key]['mean']) if key in entry else '-'


def mean(entry: Mapping[str, Any], key: str) -> str:
    """Of a number of changes; a dash where there is none."""
    return f'{entry[key]["mean"]:.3g}' if key in entry else '-'
