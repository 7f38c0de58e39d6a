"""What a person reads in the log."""
from typing import Any, Dict, List, Mapping

from mmengine.runner import Runner
from torch import nn

from mmdyrep.dynamics import Key
from mmdyrep.models import DyRepBackbone
from mmdyrep.reparam.eligible import by_reason

from .calendar import Calendar
from .history import History
from .loops import training_length
from .scoring import frozen


def counted(count: int, one: str, many: str = '') -> str:
    """A number and what it is of: ``1 op``, ``2 ops``."""
    return f'{count} {one if count == 1 else many or one + "s"}'


def human(value: float) -> str:
    """Number with three figures and a unit: 1.81 G."""
    for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
        if abs(value) >= size:
            return f'{value / size:.4g} {unit}'
    return f'{value:.4g}'


def opening(backbone: DyRepBackbone, metric: str, history: History) -> List[str]:
    """Lines at the start of training: what can grow, what can't and why."""
    candidates, skipped = backbone.candidates(), backbone.skipped()
    lines = [f'DyRep: {len(candidates)} ops can be expanded, ranked by {metric}: {", ".join(candidates)}',
             f'DyRep: each was tried on a copy of the backbone, in {backbone.survey_seconds:.1f} s']
    if backbone.structure['ops']:
        lines.append(f'DyRep: expanded already: {", ".join(backbone.structure["ops"])}')
    lines += [f'DyRep: {len(names)} ops are frozen and take part as soon as their weights learn: {", ".join(names)}'
              if reason == 'frozen' else f'DyRep: {len(names)} skipped, {reason}: {", ".join(names)}'
              for reason, names in by_reason(skipped).items()]
    given_up = history.given_up('expanding')
    if given_up:
        lines.append(f'DyRep: not tried again, they have moved the output: {", ".join(sorted(given_up))}')
    return lines


def never(runner: Runner, calendar: Calendar, by_epoch: bool) -> List[str]:
    """Line of a training that ends before its first update."""
    unit = 'epochs' if by_epoch else 'iterations'
    length, done = training_length(runner, by_epoch), runner.epoch if by_epoch else runner.iter
    first = calendar.first_after(done)
    if length is None or done >= length or (first is not None and first <= length):
        return []
    when = f'the first would follow {unit[:-1]} {first}' if first is not None else 'none is left before end'
    return [f'DyRep: no update will happen: {when}, the training ends after {length} {unit} '
            f'({", ".join(calendar.described())}). For updates, set less interval or begin of DyRepHook, in {unit}']


def twins(model: nn.Module, backbone: DyRepBackbone) -> List[str]:
    """Warnings of other parts of a model whose parameters look like the backbone's, one by one."""
    inside = set(backbone.modules())
    mine = [parameter.shape for parameter in backbone.parameters()]
    return [f'DyRep: {name} has parameters of the same shapes as the backbone. If it follows the backbone by their '
            'order (zip(a.parameters(), b.parameters())), it will mix them up once the backbone has grown: let it '
            'follow by name, or average by EMAHook'
            for name, part in model.named_modules() if part not in inside and backbone not in set(part.modules())
            and [parameter.shape for parameter in part.parameters()] == mine]


NOT_CALLED = ('DyRep: the first batch\'s training step does not call the backbone as a module, so its output can\'t be '
              'compared before and after an update; call self.backbone(x), not a method of it')


def why_unscored(backbone: DyRepBackbone, scores: Mapping[Key, float], ranked: bool, steps: int, scored: int) -> str:
    """Why no op could be ranked in an interval; nothing where one was, or where none is left to be expanded.

    Args:
        backbone (DyRepBackbone): With its candidates.
        scores (Mapping[Key, float]): Of the interval.
        ranked (bool): Whether any took part in the ranking.
        steps (int): That the optimizer has taken in the interval.
        scored (int): Scores that have been read in them.
    """
    still = frozen(backbone)
    if ranked or not scores and not still:
        return ''
    if not scores:
        return f'all {len(still)} ops that could be expanded are frozen (requires_grad=False)'
    if not steps:
        return ('the optimizer of optim_wrapper has not stepped: gradients are accumulated over more iterations than '
                'the interval has, all steps overflowed, or the training step does not use it')
    if not scored:
        return (f'none of the {len(scores)} ops had a gradient when the optimizer stepped ({steps} times): they are '
                'not part of the loss, or something clears or keeps back their gradients')
    return 'no score, or no output of the backbone, was a finite number'


def change(entry: Dict[str, Any], by_epoch: bool) -> List[str]:
    """Lines of one update: a line for each op that changed, then the costs."""
    when = f'epoch {entry["epoch"]}' if by_epoch else f'iter {entry["iter"]}'
    lines = []
    if entry['unscored']:
        lines.append(f'DyRep [{when}]: no finite score, not considered: {", ".join(entry["unscored"])}')
    if entry['over_budget']:
        lines.append(f'DyRep [{when}]: passed over, beyond max_macs_ratio: {", ".join(entry["over_budget"])}')
    for name, reason in entry.get('passed_over', ()):
        lines.append(f'DyRep [{when}]: passed over {name}: {reason}')
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
    lines.append(f'DyRep [{when}]: MACs {human(macs)}{_executed(entry)}, '
                 f'parameters {human(entry["parameters"]["model"])}{drift}, '
                 f'{entry["seconds"]:.1f} s{_scoring(entry)}')
    return lines


def _scoring(entry: Mapping[str, Any]) -> str:
    seconds = entry.get('scoring', {}).get('seconds', 0)
    return f' and {seconds:.1f} s for the scores' if seconds >= 0.05 else ''


def _executed(costs: Mapping[str, Any]) -> str:
    """MACs of training where blocks run as one convolution, beside those of their branches."""
    found = costs.get('executed')
    return f' of branches, {human(found.get("model", found["backbone"]))} executed' if found else ''


def alarm(entry: Mapping[str, Any], by_epoch: bool, tolerance: float) -> List[str]:
    """Warnings of an update that was undone, and of one that had nothing to rank."""
    when = f'epoch {entry["epoch"]}' if by_epoch else f'iter {entry["iter"]}'
    lines = []
    undone = entry.get('undone')
    if undone:
        moved = 'is no finite number any more after' if undone['drift'] is None else (
            f'moved by {undone["drift"]:.1e} of its largest value (tolerance {tolerance:.0e}) by')
        lines.append(f'DyRep [{when}]: the {undone["of"]} output {moved} {undone["doing"]} {undone["op"]}. It should '
                     'have stayed the same but for rounding: the whole update has been undone, the training goes on, '
                     f'and {undone["doing"]} {undone["op"]} is not tried again')
    if entry.get('why_unscored'):
        lines.append(f'DyRep [{when}]: nothing was scored, so nothing is expanded: {entry["why_unscored"]}')
    return lines


def show(runner: Runner, backbone: DyRepBackbone, cost: Mapping[str, Any]) -> None:
    """Let the costs go into the training's own lines of log, scalars.json and visualizers, from now on.

    Lines of their own would be taken for validation, and have other steps than the training's.
    """
    hub = runner.message_hub
    hub.update_scalar('train/dyrep/macs', cost['macs'].get('model', cost['macs']['backbone']))
    hub.update_scalar('train/dyrep/parameters', cost['parameters']['model'])
    hub.update_scalar('train/dyrep/blocks', len(backbone.structure['ops']))


def closing(history: History) -> str:
    """Line at the end of training."""
    if history.start is None:
        return 'DyRep: nothing was trained'
    average = history.average()
    grown = sum(len(entry['grown']) for entry in history.updates)
    cut = sum(len(item['branches']) for entry in history.updates for item in entry['cut'])
    macs = average['macs'].get('model', average['macs']['backbone'])
    return (f'DyRep: {len(history.updates)} updates, {grown} ops expanded, {cut} branches removed; average over '
            f'training: MACs {human(macs)}{_executed(average)}, parameters {human(average["parameters"]["model"])}')
