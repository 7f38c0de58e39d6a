"""A search with what runners do besides: accumulation, loss scales, half precision, averaged copies, frozen parts."""
import copy
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.runner import Runner

from mmdyrep.engine.ema import averaged_copies
from mmdyrep.reparam import blocks_of
from tests.dyrep_runs import AroundUpdates, trained
from tests.images import fashion
from tests.repnas_runs import SearchSpy, repnas_config, repnas_hook
from tests.runs import needs_images
from tests.test_engine.test_gradients import FusedLikeSGD, ScalingWrapper
from tests.test_engine.test_scoring import HalfOnCPU

pytestmark = needs_images
# what is compared is not clipped, and without dropout
EXACT = dict(model=dict(head=dict(dropout_rate=0.0)))


def searched(tmp_path: Path, wrapper: Dict[str, Any] = {}, reference: bool = True, **changes: Any) -> Any:
    """A run with a `SearchSpy`: search in iterations 8 to 15 of 24."""
    spy = SearchSpy(reference=reference)
    cfg = repnas_config(**changes, **EXACT, train_cfg=dict(max_epochs=3),
                        optim_wrapper={'clip_grad': None, **wrapper})
    return trained(cfg, tmp_path, [spy]), spy


def test_gradients_are_accumulated_over_iterations_with_one_mask(tmp_path):
    runner, spy = searched(tmp_path, dict(accumulative_counts=4))
    assert sorted(spy.steps) == [11, 15]
    for last, used in spy.steps.items():
        window = [item for item in spy.seen if last - 4 < item['iter'] <= last]
        assert len(window) == 4 and all(torch.equal(item['ranks'], window[0]['ranks']) for item in window)
        wanted = sum(item['local'] for item in window) / 4
        assert (used - wanted).abs().max() < 1e-3 * wanted.abs().max()
    assert not torch.equal(spy.seen[11]['mask'], spy.seen[12]['mask'])


@pytest.mark.parametrize('fused', [False, True])
def test_loss_scales_are_taken_out_and_steps_that_overflow_teach_nothing(tmp_path, fused):
    optimizer = dict(type=FusedLikeSGD.__name__ if fused else 'SGD', lr=0.05)
    runner, spy = searched(tmp_path, dict(type=ScalingWrapper.__name__, overflow=(10, 13), fused=fused,
                                          optimizer=dict(optimizer, _delete_=True)))
    assert sorted(spy.steps) == [8, 9, 11, 12, 14, 15]
    for number, used in spy.steps.items():
        wanted = spy.seen[number]['local']
        assert (used - wanted).abs().max() < 1e-3 * wanted.abs().max()
    assert torch.equal(spy.seen[10]['alpha'], spy.seen[11]['alpha'])


def test_half_precision(tmp_path):
    runner, spy = searched(tmp_path, dict(type=HalfOnCPU.__name__))
    assert len(spy.steps) == 8
    for number, used in spy.steps.items():
        wanted = spy.seen[number]['local']
        assert torch.nn.functional.cosine_similarity(used, wanted, dim=0) > 0.95
    assert repnas_hook(runner).history.updates[-1]['drift'] < 1e-4


@pytest.mark.parametrize('keep_norm', [True, False])
@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_copies_keep_their_function_and_go_on(tmp_path, keep_norm, update_buffers):
    outputs: List[torch.Tensor] = []

    def look(runner: Runner) -> None:
        averaged, = averaged_copies(runner)
        # evaluated as the search evaluates, in float64
        model = copy.deepcopy(averaged.backbone).double().eval()
        with torch.no_grad():
            outputs.append(model(fashion(16, dtype=torch.float64)[0])[-1])

    cfg = repnas_config(ema=dict(momentum=0.1, update_buffers=update_buffers), backbone=dict(keep_norm=keep_norm),
                        hook=dict(constraint=3, always=()), train_cfg=dict(max_epochs=3))
    runner = trained(cfg, tmp_path, [AroundUpdates(look, look)])
    entry = repnas_hook(runner).history.updates[-1]
    before, after = outputs[2:4]
    assert (after - before).abs().max() < 1e-6 * before.abs().max() and entry['drift_ema'] < 1e-5
    averaged, = averaged_copies(runner)
    source = runner.model.backbone
    assert averaged.backbone.structure == source.structure
    assert 1 <= len(source.structure['ops']) <= 3  # of 9, the others are plain again
    own, present = dict(source.named_parameters()), dict(averaged.backbone.named_parameters())
    assert list(own) == list(present)
    listed = averaged.ema_model.avg_parameters
    assert all(listed[f'backbone.{name}'].data_ptr() == tensor.data_ptr() for name, tensor in present.items())
    assert max((present[name] - own[name]).abs().max().item() for name in own) > 1e-5
    assert not any(block.gate for block in blocks_of(averaged.backbone).values())
    if not update_buffers:
        # 8 batches since the statistics began anew
        name = next(iter(source.structure['ops']))
        assert averaged.backbone.get_submodule(name).origin.bn.num_batches_tracked == 8


def test_what_runs_again_for_the_gradients_runs_the_same_branches(tmp_path):
    runner, spy = searched(tmp_path, activation_checkpointing=['backbone.layer1', 'backbone.layer2'], reference=False)
    straight, other = searched(tmp_path / 'straight', reference=False)
    assert len(spy.steps) == 8
    for number, used in spy.steps.items():
        wanted = other.steps[number]
        assert (used - wanted).abs().max() < 1e-3 * wanted.abs().max()
    assert runner.model.backbone.structure == straight.model.backbone.structure


def test_frozen_parts_are_not_searched_and_keep_their_branches(tmp_path):
    cfg = repnas_config(train_cfg=dict(max_epochs=3))
    cfg.model.backbone.backbone.frozen_stages = 1
    runner = trained(cfg, tmp_path)
    search = repnas_hook(runner).history.updates[-1]
    assert {op.split('.')[0] for op, _, _ in search['alpha']} == {'layer2'}
    ops = runner.model.backbone.structure['ops']
    assert ops['conv1'] == ['kxk', '1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1']


def test_alpha_is_no_parameter_of_the_model_and_the_optimizer_of_the_weights_does_not_know_it(tmp_path):
    def look(runner: Runner) -> None:
        search = repnas_hook(runner).architecture
        if search is not None:
            known = {id(parameter) for group in runner.optim_wrapper.optimizer.param_groups
                     for parameter in group['params']}
            assert id(search.alpha) not in known
            assert not any(parameter is search.alpha for parameter in runner.model.parameters())
            looked.append(1)

    looked: List[int] = []
    trained(repnas_config(train_cfg=dict(max_epochs=3)), tmp_path, [AroundUpdates(look, lambda runner: None)])
    assert looked == [1, 1]


def test_parameters_with_options_of_their_own_follow_the_end_of_a_search(tmp_path):
    cfg = repnas_config(train_cfg=dict(max_epochs=3), hook=dict(constraint=3, always=()))
    cfg.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    runner = trained(cfg, tmp_path)
    decay = {id(parameter): group['weight_decay'] for group in runner.optim_wrapper.optimizer.param_groups
             for parameter in group['params']}
    for name, parameter in runner.model.named_parameters():
        if parameter.requires_grad:
            assert (decay[id(parameter)] > 0) == (parameter.dim() > 1), name
    norms = [norm for norm in (runner.model.backbone.norm_behind(name) for name in runner.model.backbone.survey.ops)
             if norm.weight.requires_grad]
    # of ops that are plain again: they learn, with the momentum that the original's norm had
    state = runner.optim_wrapper.optimizer.state
    assert norms and all(state[norm.weight]['momentum_buffer'].any() for norm in norms)
