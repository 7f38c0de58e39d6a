"""What a person reads in the log."""
from typing import Any, Dict, List

from mmdyrep.models import DyRepBackbone
from mmdyrep.reparam.eligible import by_reason

from .history import History
from .updating import describe


def human(value: float) -> str:
    """Number with three figures and a unit: 1.81 G."""
    for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
        if abs(value) >= size:
            return f'{value / size:.4g} {unit}'
    return f'{value:.4g}'


def opening(backbone: DyRepBackbone, metric: str) -> List[str]:
    """Lines at the start of training: what can grow, what can't and why."""
    candidates, skipped = backbone.candidates(), backbone.skipped()
    lines = [f'DyRep: {len(candidates)} ops can be expanded, ranked by {metric}: {", ".join(candidates)}']
    if backbone.structure['ops']:
        lines.append(f'DyRep: expanded already: {", ".join(backbone.structure["ops"])}')
    lines += [f'DyRep: {len(names)} skipped, {reason}: {", ".join(names)}'
              for reason, names in by_reason(skipped).items()]
    return lines


def change(entry: Dict[str, Any], by_epoch: bool) -> List[str]:
    """Lines of one update: a line for each op that changed, then the costs."""
    when = f'epoch {entry["epoch"]}' if by_epoch else f'iter {entry["iter"]}'
    lines = []
    if entry['unscored']:
        lines.append(f'DyRep [{when}]: no finite score, not considered: {", ".join(entry["unscored"])}')
    if entry['over_budget']:
        lines.append(f'DyRep [{when}]: passed over, beyond max_macs_ratio: {", ".join(entry["over_budget"])}')
    if entry['tied']:
        lines.append(f'DyRep [{when}]: equal scores, the first taken: {", ".join(entry["tied"])}')
    votes = entry.get('scoring', {}).get('votes')
    if votes:
        lines.append(f'DyRep [{when}]: votes: ' + ', '.join(f'{metric} for {op}' for metric, op in votes.items()))
    grown = {item['op'] for item in entry['grown']}
    rest = [(name, score) for name, score in entry['scores'] if name not in grown]
    for item in entry['grown']:
        behind = f', next {rest[0][0]} {rest[0][1]:.3g}' if rest else ''
        lines.append(f'DyRep [{when}]: expanded {item["op"]} by {", ".join(item["branches"])} '
                     f'({entry["metric"]} {item["score"]:.3g}{behind})')
    for item in entry['cut']:
        values = ', '.join(f'{name} {item["importance"][name]:.3g}' for name in item['branches'])
        lines.append(f'DyRep [{when}]: removed {values} from {item["op"]} '
                     f'(importance: mean {item["mean"]:.3g}, deviation {item["std"]:.3g})')
    if not entry['grown'] and not entry['cut']:
        lines.append(f'DyRep [{when}]: structure unchanged')
    macs = entry['macs'].get('model', entry['macs']['backbone'])
    drift = '' if entry['drift'] is None else f', drift {entry["drift"]:.1e}'
    drift += '' if entry.get('drift_ema') is None else f', of the averaged copy {entry["drift_ema"]:.1e}'
    lines.append(f'DyRep [{when}]: MACs {human(macs)}, parameters {human(entry["parameters"]["model"])}{drift}, '
                 f'{entry["seconds"]:.1f} s{_scoring(entry)}')
    return lines


def _scoring(entry: Dict[str, Any]) -> str:
    seconds = entry.get('scoring', {}).get('seconds', 0)
    return f' and {seconds:.1f} s for the scores' if seconds >= 0.05 else ''


def alarm(entry: Dict[str, Any], tolerance: float) -> List[str]:
    """Warning of an update that did not keep the function of the network or of its averaged copy."""
    return [f'DyRep: the {what} moved by {entry[key]:.1e} of its largest value (tolerance {tolerance:.0e}) by '
            f'{describe(entry["grown"], entry["cut"])}. It should have stayed the same but for rounding'
            for key, what in (('drift', "backbone's output"), ('drift_ema', "averaged backbone's output"))
            if entry.get(key) is not None and entry[key] > tolerance]


def closing(history: History) -> str:
    """Line at the end of training."""
    if history.start is None:
        return 'DyRep: nothing was trained'
    average = history.average()
    grown = sum(len(entry['grown']) for entry in history.updates)
    cut = sum(len(item['branches']) for entry in history.updates for item in entry['cut'])
    macs = average['macs'].get('model', average['macs']['backbone'])
    return (f'DyRep: {len(history.updates)} updates, {grown} ops expanded, {cut} branches removed; average over '
            f'training: MACs {human(macs)}, parameters {human(average["parameters"]["model"])}')
