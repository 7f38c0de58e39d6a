"""RepNASHook: what happens in its phases, what a run leaves behind, and what is refused."""
import copy
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep import RepNASHook
from mmdyrep.analysis.run_files import read_run, spans
from mmdyrep.deploy import fuse_checkpoint
from mmdyrep.fileio import read_checkpoint, read_json
from mmdyrep.models.building import build_model
from mmdyrep.models.finding import find_backbone
from mmdyrep.reparam import blocks_of
from mmdyrep.reparam.left_out import is_left_out
from tests.dyrep_runs import AroundUpdates, Record, log_lines as all_lines, runner_of, trained
from tests.images import fashion
from tests.repnas_runs import SearchSpy, repnas_config, repnas_hook
from tests.runs import needs_images

PLAIN_HEAD = dict(model=dict(head=dict(dropout_rate=0.0)))


def log_lines(folder: Path) -> Any:
    text = ''.join(path.read_text() for path in sorted(folder.glob('*/*.log')))
    return [line[line.index('RepNAS'):] for line in text.splitlines() if ' - RepNAS' in line]


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """A run of 5 epochs of 8 iterations: warm-up 1, search 2, and what was seen in it."""
    folder = tmp_path_factory.mktemp('repnas') / 'run'
    spy, outputs, counts = SearchSpy(), [], Record(lambda runner: {
        name: norm.num_batches_tracked.item() for name, norm in runner.model.named_modules()
        if isinstance(norm, _BatchNorm) and not is_left_out(norm)})

    def look(runner: Runner) -> None:
        copied = copy.deepcopy(runner.model.backbone).double().eval()
        with torch.no_grad():
            outputs.append(copied(fashion(16, dtype=torch.float64)[0])[-1])

    cfg = repnas_config(hook=dict(warmup=1, search=2), **PLAIN_HEAD, train_cfg=dict(max_epochs=5),
                        optim_wrapper=dict(clip_grad=None))
    runner = trained(cfg, folder, [spy, AroundUpdates(look, look), counts])
    return dict(folder=folder, cfg=cfg, runner=runner, spy=spy, outputs=outputs, counts=counts.seen)


@needs_images
def test_each_step_runs_c_branches_of_the_whole_network_and_alpha_learns_in_the_search_alone(run):
    seen = run['spy'].seen
    assert [item.get('phase') for item in seen] == ['warm-up'] * 8 + ['search'] * 16 + [None] * 16
    searching = seen[:24]
    keys = repnas_keys(run)
    for item in searching:
        assert item['searched'] == 45 and item['mask'].sum() == 15
        # what runs are the greatest ranks, alpha and noise
        order = torch.argsort(item['ranks'], descending=True)
        assert {keys[place] for place in order[:15]} == set(item['open'])
        evaluated = torch.tensor([key in item['evaluated'] for key in keys])
        assert evaluated.sum() == 15
        assert item['alpha'][evaluated].min() >= item['alpha'][~evaluated].max()
    assert len({tuple(item['open']) for item in searching}) == 24
    assert all(not item['alpha'].any() for item in searching[:9])
    assert all(not torch.equal(one['alpha'], other['alpha']) for one, other in zip(searching[8:], searching[9:]))
    assert sorted(run['spy'].steps) == list(range(8, 24))


def repnas_keys(run: Dict[str, Any]) -> Any:
    return [tuple(key[:2]) for key in read_checkpoint(run['folder'] / 'epoch_1.pth')['dyrep']['repnas']['searched']]


@needs_images
def test_the_gradient_of_alpha_is_that_of_the_gates(run):
    for item in run['spy'].seen[8:24]:
        used = run['spy'].steps[item['iter']]
        assert (used - item['local']).abs().max() < 1e-3 * item['local'].abs().max()
        assert item['local'].abs().max() > 1e-6


@needs_images
def test_what_is_left_out_goes_and_the_function_of_evaluation_stays(run):
    before, after = run['outputs'][4:6]  # around the end of the third epoch
    assert (after - before).abs().max() < 1e-6 * before.abs().max()
    assert [structure_of(run, number) == structure_of(run, 3) for number in (2, 3)] == [False, True]
    backbone = run['runner'].model.backbone
    assert backbone.structure['ops'] == structure_of(run, 3)
    entry = repnas_hook(run['runner']).history.updates[-1]
    assert entry['epoch'] == 3 and entry['drift'] < 1e-5
    stay = {(op, branch) for op, branch, _ in entry['alpha'][:15]}
    gone = {(op, branch) for op, branches in entry['dropped'].items() for branch in branches}
    assert len(stay) == 15 and len(gone) == 30 and not stay & gone
    left = {(op, branch) for op, block in blocks_of(backbone).items() for branch in block.added}
    assert left == stay | {(op, 'residual') for op in left_residuals(run)}
    assert not any(block.gate for block in blocks_of(backbone).values())
    optimizer = run['runner'].optim_wrapper.optimizer
    assert {parameter for group in optimizer.param_groups for parameter in group['params']} >= {
        parameter for parameter in run['runner'].model.parameters() if parameter.requires_grad}


def left_residuals(run: Dict[str, Any]) -> Any:
    return [op for op, branches in read_json(run['folder'] / 'dyrep' / 'structure_3.json')['ops'].items()
            if 'residual' in branches]


def structure_of(run: Dict[str, Any], number: int) -> Any:
    return read_json(run['folder'] / 'dyrep' / f'structure_{number}.json')['ops']


@needs_images
def test_statistics_begin_anew_in_the_first_step_behind_the_search(run):
    # as recorded in front of the iterations: at the 25th they are reset already
    counts = run['counts']
    assert counts[23]['backbone.conv1.branches.kxk.bn'] == 23
    assert set(counts[24].values()) == {0} and set(counts[25].values()) == {1}


@needs_images
def test_history_files_and_log_tell_it(run):
    history = read_json(run['folder'] / 'dyrep' / 'history.json')
    assert history['settings']['method'] == 'RepNAS' and history['settings']['warmup'] == 1
    assert [(entry['epoch'], entry['phase']) for entry in history['updates']] == [(2, 'search'),
                                                                                 (3, 'end of the search')]
    start = history['start']
    assert start['parameters']['model'] > history['updates'][-1]['parameters']['model']
    assert history['updates'][0]['parameters'] == start['parameters']
    assert start['structure'] == structure_of(run, 0)
    assert start['macs']['model'] < history['average']['macs']['model'] * 1.5
    found = {span.op: span for span in spans(read_run(run['folder'])) if span.end == 5}
    assert {op: span.branches for op, span in found.items()} == {
        op: len(branches) for op, branches in structure_of(run, 3).items()}
    text = '\n'.join(log_lines(run['folder']))
    for words in ('45 branches of 9 ops are searched, 15 of them (C) run in each step; always run: kxk, residual',
                  'warm-up to epoch 1, search to epoch 3', 'RepNAS [epoch 2]: alpha from',
                  'RepNAS [epoch 3]: the search is over, 15 of 45 branches stay', 'norms begin anew',
                  'average over training'):
        assert words in text, words
    assert not all_lines(run['folder'])


@needs_images
def test_the_checkpoint_of_the_end_is_fused_to_the_network_that_was_trained(run, tmp_path):
    path = run['folder'] / 'epoch_5.pth'
    state = read_checkpoint(path)['state_dict']
    assert not any('alpha' in key or 'gate' in key for key in state)
    model = build_model(run['cfg']).double()
    model.load_state_dict(state)
    assert model.backbone.structure['ops'] == structure_of(run, 3)
    x = fashion(16, dtype=torch.float64)[0]
    with torch.no_grad():
        model.eval()
        wanted, plain = model.backbone(x)[-1], model.backbone.to_plain()
        trained_one = copy.deepcopy(run['runner'].model).double()
        trained_one.eval()
        assert (trained_one.backbone(x)[-1] - wanted).abs().max() == 0
        assert (plain(x)[-1] - wanted).abs().max() < 1e-12 * wanted.abs().max()
    report = fuse_checkpoint(run['cfg'], path, tmp_path / 'plain.pth', out_config=tmp_path / 'plain.py')
    assert 'RepNASHook' not in (tmp_path / 'plain.py').read_text()
    assert report.relative < 1e-5 and report.structure['ops'] == structure_of(run, 3)


@needs_images
def test_a_checkpoint_of_the_search_is_tested_as_it_was_evaluated_and_not_fused(run, tmp_path):
    path = run['folder'] / 'epoch_2.pth'
    with pytest.raises(ValueError, match=r'epoch_2.pth is of a search that is not over'):
        fuse_checkpoint(run['cfg'], path, tmp_path / 'plain.pth')
    cfg = copy.deepcopy(run['cfg'])
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = cfg.val_dataloader, cfg.val_evaluator, dict()
    cfg.load_from = str(path)
    tested = runner_of(cfg, tmp_path / 'test')
    tested.test()
    with torch.no_grad():
        out = tested.model.double().eval().backbone(fashion(16, dtype=torch.float64)[0])[-1]
    # after the second epoch, on the images of `look`
    assert (out - run['outputs'][3]).abs().max() < 1e-12
    assert structure_of(run, 2) == {op: [branch for branch, b in block.branches.items()
                                         if branch not in block.gate.evaluation]
                                    for op, block in blocks_of(tested.model.backbone).items()
                                    if len(block.branches) - len(block.gate.evaluation) > 1}


@needs_images
def test_an_iteration_loop_with_the_norm_behind_kept(tmp_path):
    spy = SearchSpy(reference=False)
    runner = trained(repnas_config(by_epoch=False, hook=dict(constraint=4, interval=4), backbone=dict(keep_norm=True)),
                     tmp_path, [spy])
    assert [item.get('phase') for item in spy.seen] == ['warm-up'] * 8 + ['search'] * 8 + [None] * 16
    hook = repnas_hook(runner)
    assert [entry['iter'] for entry in hook.history.updates] == [12, 16]
    assert hook.history.updates[-1]['drift'] < 1e-4
    ops = find_backbone(runner.model)[1].structure['ops']
    # the stem and the two convolutions that change width have no residual: unless alpha keeps them, they are plain
    assert sum(branch not in ('kxk', 'residual') for branches in ops.values() for branch in branches) == 4
    assert set(read_json(tmp_path / 'dyrep' / 'structure_16.json')['ops']) == set(ops)


@pytest.mark.parametrize(('settings', 'message'), [
    (dict(warmup=-1), 'warmup must be a whole number of at least 0'),
    (dict(search=0), 'search must be a whole number of at least 1'),
    (dict(interval=0), 'interval must be'), (dict(constraint=0), r'constraint \(C\) is a number'),
    (dict(constraint=1.5), r'constraint \(C\) is a number'), (dict(alpha=dict(momentum=1)), 'alpha takes lr, betas'),
    (dict(alpha=dict(lr=0)), 'alpha.lr must be'), (dict(alpha=dict(betas=(0.5, 1))), 'alpha.betas are'),
    (dict(alpha=dict(betas=0.5)), 'alpha.betas are'), (dict(alpha=dict(weight_decay=-1)), 'alpha.weight_decay'),
    (dict(always='residual'), 'always takes a sequence'), (dict(always=('3x3', )), "always names '3x3'")])
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f'RepNASHook: {message}'):
        RepNASHook(**settings)


def test_the_registry_builds_it_with_what_the_authors_have():
    hook = HOOKS.build(dict(type='RepNASHook'))
    assert (hook.warmup, hook.search, hook.constraint, hook.always) == (15, 35, 0.34, ('residual', ))
    assert hook.alpha == dict(lr=1e-4, betas=(0.5, 0.999), weight_decay=5e-4) and hook.reset_norms


@needs_images
@pytest.mark.parametrize(('changes', 'message'), [
    (dict(backbone=dict(static=False, keep_norm=True)), 'set static=True of DyRepBackbone'),
    (dict(backbone=dict(online=True, keep_norm=True)), 'does not work with DyRepBackbone.online=True'),
    (dict(compile=True), 'does not work with compile'),
    (dict(hook=dict(search=3)), 'warm-up and search take 4 epochs, the training has 4'),
    (dict(hook=dict(by_epoch=False)), 'RepNASHook: by_epoch=False does not fit EpochBasedTrainLoop'),
    (dict(default_hooks=dict(dyrep=dict(type='DyRepHook'))), 'RepNASHook and DyRepHook are two ways'),
    (dict(hook=dict(always=('1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1', 'residual'))), 'no branch is there to be'),
    (dict(hook=dict(constraint=99)), 'constraint=99 makes 99 of the 45 branches'),
    (dict(efficient_conv_bn_eval='[backbone]'), 'RepNASHook does not work with efficient_conv_bn_eval'),
    (dict(ema=dict(momentum=0.1, priority=20)), 'EMAHook has priority 20, RepNASHook')])
def test_runs_that_can_not_work_are_refused_in_words(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trained(repnas_config(**changes), tmp_path)


@needs_images
def test_a_run_goes_on_with_the_hook_and_the_settings_that_it_began_with(run, tmp_path):
    def resumed(cfg: Any, epoch: int) -> None:
        cfg.load_from, cfg.resume = str(run['folder'] / f'epoch_{epoch}.pth'), True
        trained(cfg, tmp_path)

    with pytest.raises(ValueError, match='with constraint=0.34, RepNASHook has constraint=7'):
        resumed(repnas_config(hook=dict(search=2, constraint=7), train_cfg=dict(max_epochs=5)), 2)
    other = repnas_config(train_cfg=dict(max_epochs=5))
    other.default_hooks.repnas = dict(type='DyRepHook')
    with pytest.raises(ValueError, match='the checkpoint is of a run with RepNASHook'):
        resumed(other, 2)
    plain = repnas_config()
    del plain.default_hooks['repnas']
    plain.train_cfg.max_epochs = 1
    trained(plain, tmp_path / 'static')
    cfg = repnas_config()
    cfg.load_from, cfg.resume = str(tmp_path / 'static' / 'epoch_1.pth'), True
    with pytest.raises(ValueError, match='the checkpoint is not of a run with RepNASHook'):
        trained(cfg, tmp_path / 'other')
