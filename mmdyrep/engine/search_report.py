"""What a person reads of a search, in the log and in the history."""
from typing import Any, Dict, List, Mapping, Sequence

from .history import History
from .report import human

# branches that are named on each side of the border between those that run and the others
NAMED = 3


def opening(hook: Any, now: int) -> List[str]:
    """Lines at the start of training.

    Args:
        hook (RepNASHook): With its search, if that is not over.
        now (int): Epochs (or iterations) done.
    """
    unit = 'epoch' if hook.by_epoch else 'iteration'
    if hook.architecture is None:
        return [f'RepNAS: the search is over since {unit} {hook.border}']
    search = hook.architecture
    ops = list(dict.fromkeys(name for name, _ in search.keys))
    lines = [f'RepNAS: {len(search.keys)} branches of {len(ops)} ops are searched, {search.count} of them (C) run in '
             f'each step; always run: {", ".join(dict.fromkeys(("kxk", *hook.always)))}',
             f'RepNAS: warm-up to {unit} {hook.warmup}, search to {unit} {hook.border} (alpha: Adam, lr '
             f'{hook.alpha["lr"]:g}, betas {hook.alpha["betas"]}, decay {hook.alpha["weight_decay"]:g}); then the '
             f'{search.count} branches of the greatest alpha stay'
             + (' and the statistics of the norms begin anew' if hook.reset_norms else '')]
    if now:
        lines.append(f'RepNAS: going on in the {hook.phase(now)}, after {unit} {now}')
    return lines


def changes(before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]) -> Dict[str, Any]:
    """Branches that have come into the mask of alpha and gone out of it, as entries of the history have them."""
    def gone(one: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]]) -> List[Dict[str, Any]]:
        # an op without branches is in no structure
        found = {name: [branch for branch in branches if branch not in other.get(name, ('kxk', ))]
                 for name, branches in one.items()}
        return [{'op': name, 'branches': branches} for name, branches in found.items() if branches]

    return {'grown': gone(after, before), 'cut': gone(before, after)}


def _written(changed: Sequence[Mapping[str, Any]]) -> str:
    return ', '.join(f'{branch} of {item["op"]}' for item in changed for branch in item['branches']) or 'none'


def _number(changed: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(item['branches']) for item in changed)


def lines(entry: Mapping[str, Any], unit: str, ops: Mapping[str, Sequence[str]], resets: bool) -> List[str]:
    """Lines of one entry of the history.

    Args:
        entry (dict): Of the history.
        unit (str): 'epoch' or 'iteration'.
        ops (dict): Branches of the ops that have some in evaluation, by op.
        resets (bool): Whether the statistics of the norms begin anew behind the search.
    """
    when = f'RepNAS [{"epoch" if unit == "epoch" else "iter"} {entry["epoch" if unit == "epoch" else "iter"]}]'
    alpha, count = [(f'{branch} of {op}', value) for op, branch, value in entry['alpha']], entry['running']
    inside = ', '.join(f'{name} {value:.3g}' for name, value in alpha[max(0, count - NAMED):count])
    outside = ', '.join(f'{name} {value:.3g}' for name, value in alpha[count:count + NAMED])
    macs = human(entry['macs'].get('model', entry['macs']['backbone']))
    found = [f'{when}: alpha from {alpha[-1][1]:.3g} to {alpha[0][1]:.3g}; last inside {inside}'
             + (f'; first outside {outside}' if outside else '')]
    if entry['grown'] or entry['cut']:
        found.append(f'{when}: {_number(entry["grown"])} branches came in: {_written(entry["grown"])}; '
                     f'{_number(entry["cut"])} went out: {_written(entry["cut"])}')
    if 'dropped' not in entry:
        return [*found, f'{when}: MACs of the branches by alpha {macs}']
    plain = [name for name in entry['dropped'] if name not in ops]
    drift = '' if entry['drift'] is None else f', drift {entry["drift"]:.1e}'
    drift += '' if entry.get('drift_ema') is None else f', of the averaged copy {entry["drift_ema"]:.1e}'
    return [*found,
            f'{when}: the search is over, {count} of {len(alpha)} branches stay',
            *(f'{when}: {name}: {", ".join(branches)}' for name, branches in ops.items()),
            *([f'{when}: plain again: {", ".join(plain)}'] if plain else []),
            f'{when}: MACs {macs}, parameters {human(entry["parameters"]["model"])}{drift}, {entry["seconds"]:.1f} s'
            + (f'; statistics of the norms begin anew with the next {unit}' if resets else '')]


def reset(number: int) -> str:
    """Line where the running statistics of norms begin anew."""
    return f'RepNAS: the running statistics of {number} norms begin anew'


def closing(history: History) -> str:
    """Line at the end of training."""
    average = history.average()
    if not average:
        return 'RepNAS: nothing was trained'
    macs = average['macs'].get('model', average['macs']['backbone'])
    return (f'RepNAS: average over training, of the branches by alpha: MACs {human(macs)}, '
            f'parameters {human(average["parameters"]["model"])}')
