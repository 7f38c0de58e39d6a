"""The pages that lead through experiments and studies: text is written by hand, figures come from the reports."""
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List

from mmdyrep.fileio import atomic_path, read_json

from .experiment import Experiment
from .index import EXPERIMENTS
from .report import markdown, table_of_content
from .studies import STUDIES, find
from .study_report import judged

NAMES = (*EXPERIMENTS, *STUDIES)
_PART = re.compile(r'(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)', re.DOTALL)


def update_page(reports: Path, folder: Path) -> List[str]:
    """Take the reports that are there into a folder and fill the figures into its pages.

    These are its ``index.md`` and, where there is one, ``results.md`` in the folder above.

    Args:
        reports (Path): Has ``NAME/NAME.{md,json,png}``.
        folder (Path): Of the page.

    Returns:
        list[str]: Names of the experiments that the folder has a report of.
    """
    for name in NAMES:
        for kind in ('md', 'json', 'png'):
            source = reports / name / f'{name}.{kind}'
            if source.exists():
                shutil.copyfile(source, folder / source.name)
    for path in folder.glob('*.json'):
        # the text of a report follows its figures
        name, picture = path.stem, folder / f'{path.stem}.png'
        with atomic_path(folder / f'{name}.md') as temporary:
            temporary.write_text(markdown(
                find(name), read_json(path), picture.name if picture.exists() else None), encoding='utf-8')
    for page in (folder / 'index.md', folder.resolve().parent / 'results.md'):
        if page.exists():
            text = filled(page.read_text(encoding='utf-8'), folder, '' if page.parent == folder else f'{folder.name}/')
            with atomic_path(page) as temporary:
                temporary.write_text(text, encoding='utf-8')
    return [name for name in NAMES if (folder / f'{name}.json').exists()]


def filled(text: str, folder: Path, way: str = '') -> str:
    """A page with what lies between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` made anew from the reports.

    Args:
        text (str): Of the page.
        folder (Path): Of the reports.
        way (str): From the page to the folder, with a slash. Defaults to none: they lie together.
    """
    return _PART.sub(lambda match: match[1] + part(match[2], folder, way) + match[3], text)


def part(name: str, folder: Path, way: str = '') -> str:
    """What a page says of an experiment: what has run, the table, the picture."""
    if name in ('summary', 'answer'):
        return '\n'.join(_summary(folder) if name == 'summary' else _answer(folder)) + '\n'
    path = folder / f'{name}.json'
    experiment = find(name)
    if not path.exists():
        return f'None of its {len(experiment.small)} small runs has been made yet.\n'
    content = read_json(path)
    lines = [state(experiment, content), '', *table_of_content(experiment, content), '']
    if (folder / f'{name}.png').exists():
        lines += [f'![{experiment.title}]({way}{name}.png)', '']
    return '\n'.join([*lines, f'[Report]({way}{name}.md)']) + '\n'


def _summary(folder: Path) -> List[str]:
    lines = ['| | rows | with one seed or more | seeds |', '|---|---|---|---|']
    for name, experiment in EXPERIMENTS.items():
        path = folder / f'{name}.json'
        table = read_json(path)['table'] if path.exists() else []
        seeds = sorted({len(entry['seeds']) for entry in table if 'seeds' in entry})
        lines.append(f'| {experiment.title} | {len(experiment.small)} | {len(table)} | '
                     f'{" to ".join(map(str, sorted({seeds[0], seeds[-1]}))) if seeds else "-"} |')
    return lines


def _answer(folder: Path) -> List[str]:
    """What the studies say to their claims, all of them together."""
    lines = ['| study | runs | shown | refuted | open |', '|---|---|---|---|---|']
    for name, study in STUDIES.items():
        if not study.claims:
            continue
        path = folder / f'{name}.json'
        table = read_json(path)['table'] if path.exists() else []
        found: Dict[str, List[str]] = {'yes': [], 'no': [], 'open': []}
        for item in judged(study, table):
            found[re.split(r'[:;]', item.verdict)[0]].append(item.claim.text)
        cells = ['; '.join(found[kind]) or '-' for kind in ('yes', 'no')]
        lines.append(f'| {study.title.split("? ")[-1]} | {sum(len(entry["seeds"]) for entry in table)} | '
                     f'{" | ".join(cells)} | {len(found["open"]) if table else "all"} |')
    return lines


def state(experiment: Experiment, content: Dict[str, Any]) -> str:
    """How much of it has run."""
    if experiment.picture == 'counts':
        return f'{len(content["table"])} networks counted, at small size.'
    number = {row: len(entry['seeds']) for entry in content['table'] for row in [f'{entry["row"]}, {entry["column"]}']}
    missing = [f'{run.row}, {run.column}' for run in experiment.small if f'{run.row}, {run.column}' not in number]
    seeds = sorted(set(number.values()))
    runs = sum(number.values())
    text = f'{runs} small run{"s" * (runs > 1)}, ' + (f'{seeds[0]} seed{"s" * (seeds[0] > 1)} each.' if len(
        seeds) == 1 else f'{seeds[0]} to {seeds[-1]} seeds.' if seeds else 'none yet.')
    return text + (f' **Not run:** {"; ".join(missing)}.' if missing else '')
