"""Experiments that train nothing: networks are counted (Table 1)."""
from pathlib import Path
from typing import Any, Dict, List, Sequence

from mmengine.config import Config

from mmdyrep.analysis.complexity import complexity
from mmdyrep.engine.report import human

from .experiment import Run

# as the paper's Table 1 has them
BRANCHES = {'RepVGG': 3, 'DBB': 4, 'RepNAS': 7, 'DyRep': 7}


def count(runs: Sequence[Run], root: Path) -> List[Dict[str, Any]]:
    """Branches, MACs and parameters of the network of each run, one entry each.

    Args:
        runs (Sequence[Run]): The first of each column is the plain network.
        root (Path): The repository.
    """
    plain: Dict[str, Any] = {}
    counts = []
    for run in runs:
        cfg = Config.fromfile(root / 'configs' / run.config)
        cfg.merge_from_dict(dict(run.options))
        found = complexity(cfg)
        form = found.form
        macs, parameters = form.macs['model'], form.parameters['model']
        base = plain.setdefault(run.column, (macs, parameters))
        names: Sequence[str] = max(found.structure.values(), key=len, default=['kxk'])
        counts.append({'row': run.row, 'column': run.column, 'branches': list(names), 'blocks': len(found.structure),
                       'macs': macs, 'parameters': parameters, 'macs_ratio': macs / base[0],
                       'parameters_ratio': parameters / base[1]})
    return counts


def table_of_counts(counts: Sequence[Dict[str, Any]]) -> List[str]:
    """Lines of Markdown."""
    head = ['', 'network', 'branches', 'their number', '**the paper\'s**', 'ops', 'MACs', 'times', 'parameters',
            'times']
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for entry in counts:
        cells = [entry['row'], entry['column'], ', '.join(f'`{name}`' for name in entry['branches']),
                 str(len(entry['branches'])), str(BRANCHES.get(entry['row'], '-')), str(entry['blocks']),
                 human(entry['macs']), f'{entry["macs_ratio"]:.2f}', human(entry['parameters']),
                 f'{entry["parameters_ratio"]:.2f}']
        lines.append('| ' + ' | '.join(cells) + ' |')
    return lines
