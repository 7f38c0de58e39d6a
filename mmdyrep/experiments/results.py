"""What a run came to, and what several seeds say together."""
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any, Dict, List, Mapping, Sequence

from mmengine.config import Config

from mmdyrep.analysis.complexity import complexity
from mmdyrep.analysis.run_files import read_run
from mmdyrep.engine.costs import cost
from mmdyrep.models import DyRepBackbone
from mmdyrep.models.building import build_model

from .experiment import BOX_AP, TOP1

# two-sided 95 % quantiles of Student's t, 1 to 30 degrees of freedom
_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def read_result(folder: Path, metric: str = TOP1) -> Dict[str, Any]:
    """The last value of the metric in percent, costs averaged over the training, and how the structure changed.

    ``macs`` are those of the branches, ``executed`` those of the training, where ``online`` blocks are one convolution.

    Raises:
        ValueError: If the run was never validated.
    """
    run = read_run(folder)
    if metric not in run.metrics:
        raise ValueError(f'{folder} holds no validation with {metric}')
    # mmdet's is a share
    scale = 100 if metric == BOX_AP else 1
    curve = [(step, scale * value) for step, value in run.metrics[metric]]
    result: Dict[str, Any] = {'metric': metric, 'value': curve[-1][1], 'steps': curve[-1][0], 'curve': curve}
    if run.history is not None:
        average, updates = run.history['average'], run.history['updates']
        costs = {kind: _of_model(average[kind]) for kind in ('macs', 'parameters')}
        costs['executed'] = _of_model(average.get('executed', average['macs']))
        result.update(
            grown=sum(len(entry['grown']) for entry in updates),
            cut=sum(len(item['branches']) for entry in updates for item in entry['cut']),
            update_seconds=round(sum(entry['seconds'] + entry.get('scoring', {}).get('seconds', 0)
                                     for entry in updates), 1),
            updates=[{run.unit: entry[run.unit], 'grown': [item['op'] for item in entry['grown']],
                      'cut': {item['op']: item['branches'] for item in entry['cut']}, 'drift': entry.get('drift')}
                     for entry in updates])
        return {**result, **costs}
    config = max(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    return {**result, **_costs(Config.fromfile(config))}


def _of_model(parts: Mapping[str, float]) -> float:
    return parts.get('model', parts['backbone'])


def _costs(cfg: Config) -> Dict[str, float]:
    """Of a network whose structure stays."""
    found = complexity(cfg)
    macs = found.form.macs
    # of a detector the backbone alone can be counted, at a size that the config does not tell
    if 'model' not in macs:
        return {}
    costs: Dict[str, float] = {
        'macs': macs['model'], 'executed': macs['model'], 'parameters': found.form.parameters['model']}
    model = build_model(cfg)
    backbone = model.backbone
    if isinstance(backbone, DyRepBackbone) and backbone.online:
        costs['executed'] = cost(model, backbone, found.shape)['executed']['model']
    return costs


def student(number: int) -> float:
    """Two-sided 95 % quantile of Student's t for the mean of so many values, two or more; the normal's beyond 31."""
    return _QUANTILES[number - 2] if number - 1 <= len(_QUANTILES) else NormalDist().inv_cdf(0.975)


def summary(values: Sequence[float]) -> Dict[str, float]:
    """Mean, sample deviation and half the width of the 95 % interval of the mean; the latter two of several only."""
    number, mean = len(values), sum(values) / len(values)
    if number < 2:
        return {'mean': mean, 'number': number}
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (number - 1))
    return {'mean': mean, 'number': number, 'deviation': deviation,
            'interval': student(number) * deviation / math.sqrt(number)}


def table_of(results: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """One entry for each row and column, in the order of the results, seeds taken together.

    ``difference`` is the one to the first row of the column, seed by seed.
    """
    groups: Dict[Any, List[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result['row'], result['column']), []).append(result)
    table = []
    for (row, column), group in groups.items():
        entry: Dict[str, Any] = {'row': row, 'column': column, 'metric': group[0].get('metric', TOP1),
                                 'seeds': [item['seed'] for item in group]}
        for key in ('value', 'macs', 'executed', 'parameters', 'seconds', 'cpu_seconds', 'grown', 'cut'):
            found = [item[key] for item in group if item.get(key) is not None]
            if found:
                entry[key] = {**summary(found), 'values': found}
        first = next(other for (_, where), other in groups.items() if where == column)
        if first is not group:
            # seeds have data, initial weights and order of the images in common
            values = {item['seed']: item['value'] for item in first}
            pairs = [item['value'] - values[item['seed']] for item in group if item['seed'] in values]
            if pairs:
                entry['difference'] = summary(pairs)
        table.append(entry)
    return table
