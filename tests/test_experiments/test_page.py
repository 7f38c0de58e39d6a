"""The page of the experiments shows what the reports beside it hold, and follows them."""
import json
import re
import shutil
from pathlib import Path

from mmdyrep.experiments import EXPERIMENTS
from mmdyrep.experiments.page import filled, update_page
from mmdyrep.experiments.report import markdown
from mmdyrep.experiments.studies import find
from tests.configs import ROOT

FOLDER = ROOT / 'docs' / 'experiments'
PAGE = (FOLDER / 'index.md').read_text(encoding='utf-8')


def test_every_experiment_has_its_place_in_the_order_of_the_paper():
    assert sorted(re.findall(r'<!-- begin (\w+) -->', PAGE)) == sorted([*EXPERIMENTS, 'summary'])
    for name in EXPERIMENTS:
        place = PAGE.index(f'<!-- begin {name} -->')
        assert PAGE.index(f'### {name[:5].capitalize()} {name[5:]}\n' if 'table' in name else
                          f'### Figure {name[6:]}\n') < place


def test_page_and_reports_say_what_the_json_says():
    assert filled(PAGE, FOLDER) == PAGE
    for path in FOLDER.glob('*.json'):
        content = json.loads(path.read_text())
        name, picture = path.stem, path.with_suffix('.png')
        assert content['experiment'] == name
        assert path.with_suffix('.md').read_text() == markdown(
            find(name), content, picture.name if picture.exists() else None)
        # a checkpoint or a large picture has no place here
        assert path.stat().st_size < 200_000 and (not picture.exists() or picture.stat().st_size < 120_000)
    assert {path.suffix for path in FOLDER.iterdir()} <= {'.md', '.json', '.png'}


def test_a_report_comes_into_the_page_and_what_has_not_run_is_named(tmp_path: Path):
    source = json.loads((FOLDER / 'table6.json').read_text())
    source['table'] = [entry for entry in source['table'] if entry['row'] != 'Origin']
    source['table'][0]['value']['mean'] = 12.3456
    (tmp_path / 'reports' / 'table6').mkdir(parents=True)
    (tmp_path / 'reports' / 'table6' / 'table6.json').write_text(json.dumps(source))
    folder = tmp_path / 'docs'
    folder.mkdir()
    shutil.copyfile(FOLDER / 'index.md', folder / 'index.md')
    assert update_page(tmp_path / 'reports', folder) == ['table6']
    text = (folder / 'index.md').read_text()
    part = text[text.index('<!-- begin table6'):text.index('<!-- end table6')]
    assert '| 12.35' in part and '**Not run:** Origin, Fashion-MNIST.' in part and '.png' not in part
    assert '12.35' in (folder / 'table6.md').read_text()
    part = text[text.index('<!-- begin table2'):text.index('<!-- end table2')]
    assert 'None of its 3 small runs has been made yet.' in part
    # what stands outside of the marks is left alone
    assert re.sub(r'(?s)(begin \w+ -->).*?<!-- end', r'\1<!-- end', text) == re.sub(
        r'(?s)(begin \w+ -->).*?<!-- end', r'\1<!-- end', PAGE)
