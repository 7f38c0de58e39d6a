"""history.json and the structures beside it against a direct computation."""
from typing import Any, Dict

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmdyrep.engine.history import History
from mmdyrep.fileio import read_json
from tests.backbones import difference, outputs
from tests.dyrep_runs import dyrep_config, history, trained
from tests.runs import needs_images


def model_with(cfg: Config, structure: Any) -> nn.Module:
    """The config's model, built with a structure."""
    model = cfg.model.to_dict()
    model['backbone']['structure'] = structure
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(model)


def count(model: nn.Module) -> int:
    """Multiply-adds by mmengine's analyzer, of convolutions and linear layers."""
    analyzer = FlopAnalyzer(model.eval(), (torch.zeros(1, 1, 28, 28), )).unsupported_ops_warnings(False)
    by_operator = analyzer.by_operator()
    return by_operator['conv'] + by_operator['linear']


@pytest.fixture(scope='module')
def run(tmp_path_factory: Any) -> Dict[str, Any]:
    folder = tmp_path_factory.mktemp('history') / 'run'
    cfg = dyrep_config(dict(metric='snip_bn', dep=dict(threshold=1e-6), interval=2, begin=1, num_grow=2))
    cfg.train_cfg.max_epochs = 6
    runner: Runner = trained(cfg, folder)
    return dict(cfg=cfg, folder=folder, runner=runner, history=history(folder))


@needs_images
def test_costs_of_every_structure(run: Dict[str, Any]) -> None:
    entries = [run['history']['start'], *run['history']['updates']]
    structures = [None] + [read_json(run['folder'] / 'dyrep' / f'structure_{e}.json') for e in (3, 5)]
    assert [entry['iter'] for entry in entries] == [0, 24, 40]
    assert any(entry['cut'] for entry in entries[1:]) and all(len(entry['grown']) == 2 for entry in entries[1:])
    for entry, structure in zip(entries, structures):
        model = model_with(run['cfg'], structure)
        assert entry['macs'] == {'backbone': count(model.backbone), 'model': count(model)}
        assert entry['parameters'] == {'backbone': sum(p.numel() for p in model.backbone.parameters()),
                                       'model': sum(p.numel() for p in model.parameters())}


@needs_images
def test_averages_are_weighted_by_iterations(run: Dict[str, Any]) -> None:
    content = run['history']
    assert content['iterations'] == 48
    entries = [content['start'], *content['updates']]
    for kind in ('macs', 'parameters'):
        for part in ('backbone', 'model'):
            # 24 iterations of the plain network, 16 of the next, 8 of the last
            each = [value for entry, length in zip(entries, (24, 16, 8)) for value in [entry[kind][part]] * length]
            assert content['average'][kind][part] == pytest.approx(sum(each) / 48, rel=1e-12)


@needs_images
def test_entries_say_what_happened(run: Dict[str, Any]) -> None:
    settings = run['history']['settings']
    assert {key: settings[key] for key in ('metric', 'interval', 'begin', 'end', 'num_grow', 'threshold')} == dict(
        metric='snip_bn', interval=2, begin=1, end=None, num_grow=2, threshold=1e-6)
    assert settings['input_shape'] == [1, 28, 28]
    for entry in run['history']['updates']:
        ranked = [name for name, _ in entry['scores']]
        assert [score for _, score in entry['scores']] == sorted((s for _, s in entry['scores']), reverse=True)
        assert [item['op'] for item in entry['grown']] == ranked[:2]
        assert entry['drift'] < 1e-5 and entry['seconds'] > 0
        for item in entry['cut']:
            values = list(item['importance'].values())
            mean = sum(values) / len(values)
            assert item['mean'] == pytest.approx(mean)
            assert item['std'] == pytest.approx((sum((v - mean) ** 2 for v in values) / len(values)) ** .5)
            assert item['branches'] == [name for name, value in item['importance'].items() if value < mean]


@needs_images
def test_last_structure_builds_the_trained_network(run: Dict[str, Any]) -> None:
    trained_model = run['runner'].model
    path = run['folder'] / 'dyrep' / 'structure_5.json'
    assert read_json(path) == trained_model.backbone.structure
    model = model_with(run['cfg'], str(path))
    model.load_state_dict(trained_model.state_dict(), strict=True)
    x = torch.randn(4, 1, 28, 28)
    assert difference(outputs(model.backbone, x), outputs(trained_model.backbone, x)) == 0


def test_goes_on_from_its_state() -> None:
    def cost(value: int) -> Dict[str, Dict[str, int]]:
        return {'macs': {'backbone': value}, 'parameters': {'backbone': 1}}

    first = History()
    first.begin(0, cost(10), dict(metric='snip'))
    first.add(dict(epoch=1, iter=6, grown=[], cut=[], **cost(20)))
    second = History(first.state())
    second.begin(6, cost(99), dict(metric='snip'))  # the start of the run stays
    second.iterations = 8
    assert second.average()['macs'] == {'backbone': (6 * 10 + 2 * 20) / 8}
    assert second.state() == History(second.state()).state()
    with pytest.raises(ValueError, match='version 2, this mmdyrep reads up to 1'):
        History({'version': 2})
