"""The metrics by name."""
from typing import Any, Dict, Mapping, Type, Union

from .grasp import Grasp
from .saliency import GradNorm, Random, Saliency, Snip, SnipBN, SynFlow
from .vote import Vote

# a name, or a dict with the name as ``type``
Metric = Union[str, Mapping[str, Any]]
METRICS: Dict[str, Type[Saliency]] = {
    'random': Random,
    'grad_norm': GradNorm,
    'snip': Snip,
    'grasp': Grasp,
    'synflow': SynFlow,
    'snip_bn': SnipBN,
    'vote': Vote,
}


def build_metric(metric: Metric) -> Saliency:
    """Metric of a name, or of a dict with its name as ``type`` and its settings.

    Raises:
        ValueError: If there is no such metric, or it has no such setting.

    Example:
        >>> from mmdyrep.dynamics import build_metric
        >>> build_metric(dict(type='grasp', two_batches=True)).batches
        2
    """
    settings: Dict[str, Any] = dict(metric) if isinstance(metric, Mapping) else dict(type=metric)
    kind = settings.pop('type', None)
    if not isinstance(kind, str) or kind not in METRICS:
        raise ValueError(f'unknown metric {kind!r}; there are {sorted(METRICS)}')
    try:
        if 'metrics' in settings:
            settings['metrics'] = {name_of(member): build_metric(member) for member in settings['metrics']}
        return METRICS[kind](**settings)
    except TypeError as error:
        raise ValueError(f'metric {kind!r} with the settings {settings}: {error}') from error


def name_of(metric: Metric) -> Any:
    """Name of a metric that is given by its name or as a dict."""
    return metric.get('type') if isinstance(metric, Mapping) else metric
