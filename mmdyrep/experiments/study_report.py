"""The table of a study: accuracies, differences of twins with intervals, costs, and what they decide."""
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence

from .cells import accuracy, cost, mean
from .experiment import Claim, Study
from .pairs import FEWEST

NOTE = (
    'Last values: mean and sample deviation over the seeds. A difference is the mean of those of the twins, which '
    'share the seed, and with it the order of the images and what networks without blocks start from; in brackets its '
    f'95 % interval (bootstrap over the seeds, 10,000 resamples, expanded percentiles), for {FEWEST} pairs or more. '
    'MACs are those of the branches, averaged over the training, as the paper counts; executed ones are those of a '
    'forward pass in training, where online blocks are one convolution (merging the kernels is not in them). CPU time '
    'is that of the whole process, start and last validation included; it and the minutes are of the machine that '
    'trained, which did other work beside.')


def study_lines(study: Study, table: Sequence[Mapping[str, Any]]) -> List[str]:
    """Lines of Markdown: a row for each method and training, then what of the claims is decided.

    Args:
        study (Study): Whose table it is.
        table (Sequence[Mapping]): With the pairs of :func:`~.pairs.compared`.
    """
    head = ['', study.column, 'top-1 (%)', *(f'to {reference}' for reference in study.references), 'seeds', 'MACs',
            'executed', 'CPU minutes', 'minutes', 'ops expanded', 'branches removed']
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for entry in table:
        plain = _entry(table, study.references[0], entry['column'])
        cells = [entry['row'], entry['column'], accuracy(entry['value']),
                 *(difference(entry['pairs'].get(reference)) for reference in study.references),
                 ', '.join(map(str, entry['seeds'])), cost(entry, 'macs'), cost(entry, 'executed'),
                 _minutes(entry, 'cpu_seconds', plain), _minutes(entry, 'seconds', plain), mean(entry, 'grown'),
                 mean(entry, 'cut')]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return [*lines, *_alone(table), *_verdicts(study, table)]


def _entry(table: Sequence[Mapping[str, Any]], row: str, column: str) -> Optional[Mapping[str, Any]]:
    return next((entry for entry in table if (entry['row'], entry['column']) == (row, column)), None)


def difference(pair: Optional[Mapping[str, Any]]) -> str:
    """Of a row to another: mean, interval where there is one, number of pairs."""
    if not pair or 'mean' not in pair:
        return '-'
    ends = f' [{pair["low"]:+.2f}, {pair["high"]:+.2f}]' if 'low' in pair else ''
    return f'{pair["mean"]:+.2f}{ends} ({len(pair["seeds"])})'


def _alone(table: Sequence[Mapping[str, Any]]) -> List[str]:
    found = [f'{entry["row"]}, {entry["column"]}, and {reference}: seed{"s" * (len(pair["alone"]) > 1)} '
             f'{", ".join(map(str, pair["alone"]))}'
             for entry in table for reference, pair in entry['pairs'].items() if pair['alone']]
    return ['', f'Run of one of two twins alone, left out of the difference: {"; ".join(found)}.'] if found else []


def _verdicts(study: Study, table: Sequence[Mapping[str, Any]]) -> List[str]:
    if not study.claims:
        return []
    return ['', '| claim | difference | time | shown |', '|---|---|---|---|', *(
        f'| {item.claim.text}, {item.column} | {difference(item.pair)} | {f"{item.share:.2f}" if item.share else "-"} '
        f'| {item.verdict} |' for item in judged(study, table))]


class Judged(NamedTuple):
    """A claim, for one of the trainings, and what the table says to it."""

    claim: Claim
    column: str
    pair: Optional[Mapping[str, Any]]
    share: Optional[float]
    verdict: str


def judged(study: Study, table: Sequence[Mapping[str, Any]]) -> List[Judged]:
    """What a table says to each claim of its study, training by training."""
    found = []
    for column in dict.fromkeys(entry['column'] for entry in table):
        for claim in study.claims:
            row, reference = _entry(table, claim.row, column), _entry(table, claim.reference, column)
            pair = row['pairs'].get(claim.reference) if row else None
            share = _share(row, reference)
            found.append(Judged(claim, column, pair, share, verdict(claim, pair, share)))
    return found


def verdict(claim: Claim, pair: Optional[Mapping[str, Any]], share: Optional[float]) -> str:
    """Whether a claim is shown: 'yes', 'no' where its opposite is, else why it is open.

    Args:
        claim (Claim): Of a difference above minus its margin and, with ``time``, of a share of the time.
        pair (Mapping, optional): The difference.
        share (float, optional): Time of the row, of the reference's.
    """
    if not pair or 'low' not in pair:
        return f'open: fewer than {FEWEST} pairs'
    if pair['high'] < -claim.margin:
        return 'no'
    if claim.time is not None and share is not None and share > claim.time:
        return 'no: it takes longer'
    if pair['low'] <= -claim.margin:
        return 'open: the interval holds both'
    return 'open: no time was taken' if claim.time is not None and share is None else 'yes'


def _share(row: Optional[Mapping[str, Any]], reference: Optional[Mapping[str, Any]]) -> Optional[float]:
    if not row or not reference or not ('cpu_seconds' in row and 'cpu_seconds' in reference):
        return None
    return float(row['cpu_seconds']['mean'] / reference['cpu_seconds']['mean'])


def _minutes(entry: Mapping[str, Any], key: str, plain: Optional[Mapping[str, Any]]) -> str:
    if key not in entry:
        return '-'
    found = f'{entry[key]["mean"] / 60:.1f}'
    return f'{found} ({entry[key]["mean"] / plain[key]["mean"]:.2f}x)' if plain and key in plain else found
