"""What two ranks share, and how differences between them are told; wrappers that are refused."""
import copy
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.dist import all_gather_object
from mmengine.model import (
    MMDistributedDataParallel,
    MMFullyShardedDataParallel,
    MMSeparateDistributedDataParallel,
    convert_sync_batchnorm,
)
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

from mmdyrep import DyRepBackbone
from mmdyrep.cli import set_processes
from mmdyrep.engine import distributed
from tests.processes import free_port
from tests.test_dynamics.small_network import SmallNetwork


class Bare:
    """As much of a runner as wrapping takes."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.cfg = model, Config(dict())

    def wrap_model(self, cfg: Any, model: nn.Module) -> nn.Module:
        return MMDistributedDataParallel(model, broadcast_buffers=False)


def message(models: List[nn.Module]) -> str:
    try:
        distributed.check_agreement(models, 'now')
    except RuntimeError as error:
        return str(error)
    return ''


def share(rank: int) -> Dict[str, Any]:
    """Statistics of two models, one in float32, before and after; images and layers differ by rank."""
    torch.manual_seed(rank)
    models = [SmallNetwork().double(), SmallNetwork()]
    for model in models:
        for _ in range(3):
            model(torch.randn(4, 1, 28, 28, dtype=next(model.parameters()).dtype) * (rank + 1) + rank)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    distributed.mean_statistics(models)
    return dict(before=before, after=[model.state_dict() for model in models])


def disagree(rank: int) -> Dict[str, str]:
    """Message for each way in which ranks can differ."""
    torch.manual_seed(0)
    first = DyRepBackbone(SmallNetwork().eval(), input_shape=(1, 28, 28))
    found = dict(same=message([first, copy.deepcopy(first)]))

    def differing(change: Any, place: int = 0) -> str:
        models = [copy.deepcopy(first), copy.deepcopy(first)]
        if rank == 1:
            with torch.no_grad():
                change(models[place])
        return message(models)

    def swap(model: nn.Module) -> None:
        weight = model.conv2.weight.flatten()
        weight[[0, 1]] = weight[[1, 0]]

    def one_bit(model: nn.Module) -> None:
        model.bn2.weight[0] = torch.nextafter(model.bn2.weight[0], torch.tensor(2.))

    found['bit'] = differing(one_bit)
    found['order'] = differing(swap)
    found['statistics'] = differing(lambda model: model.bn4.running_var.mul_(2))
    found['averaged'] = differing(swap, 1)
    found['structure'] = differing(lambda model: model.expand('conv2', ['1x1']))
    found['sound'] = distributed.true_on_all(rank == 0), distributed.true_on_all(True)
    found['first'] = distributed.from_first_rank(rank + 7)
    return found


def wrap(rank: int) -> Dict[str, Any]:
    """Gradients after wrapping anew; communication hooks of torch, and one that came too early."""
    torch.manual_seed(0)
    found = {}
    model = DyRepBackbone(SmallNetwork(), input_shape=(1, 28, 28))
    runner = Bare(MMDistributedDataParallel(model, broadcast_buffers=False))

    def gradients() -> Dict[str, torch.Tensor]:
        runner.model.zero_grad()
        x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(rank))
        runner.model(x).square().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()
                if parameter.grad is not None}

    def same(values: Dict[str, torch.Tensor]) -> bool:
        left, right = all_gather_object(values)
        return all(torch.equal(left[name], right[name]) for name in left)

    def expand(name: str) -> None:
        model.expand(name, ['1x1'], generator=torch.Generator().manual_seed(1))

    distributed.remember_comm_hook(runner)
    runner.model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    found['before'] = same(gradients())
    expand('conv2')
    found['kept'] = same(gradients())
    distributed.wrap_anew(runner)
    compressed = gradients()
    found['anew'] = same(compressed) and any('branches.1x1' in name for name in compressed)
    # what went through float16 is a float16 number
    found['compressed'] = all(torch.equal(value, (value.half()).float()) for value in compressed.values())

    runner.model = MMDistributedDataParallel(model, broadcast_buffers=False)
    distributed.remember_comm_hook(runner)
    state = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=1)
    runner.model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    for _ in range(4):
        gradients()
    found['power'] = bool(state.error_dict)
    expand('conv4')
    distributed.wrap_anew(runner)
    found['forgotten'] = not state.error_dict and state.iter == 0
    for _ in range(4):
        reduced = gradients()
    found['power_anew'] = bool(state.error_dict) and same(reduced)

    early = Bare(MMDistributedDataParallel(model, broadcast_buffers=False))
    early.model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    try:
        distributed.remember_comm_hook(early)
    except ValueError as error:
        found['early'] = str(error)
    try:
        distributed.check_wrapper(Bare(MMSeparateDistributedDataParallel(nn.Sequential(nn.Linear(1, 1)))))
    except ValueError as error:
        found['parts'] = str(error)
    return found


def work(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))
    torch.save(dict(share=share(rank), disagree=disagree(rank), wrap=wrap(rank)), os.path.join(folder, f'{rank}.pth'))
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: Any) -> List[Dict[str, Any]]:
    folder = tmp_path_factory.mktemp('ranks')
    mp.spawn(work, (str(folder), free_port()), nprocs=2)
    return [torch.load(folder / f'{rank}.pth', weights_only=False) for rank in range(2)]


def test_statistics_become_the_mean_over_ranks_and_nothing_else_changes(ranks: Any) -> None:
    for place in range(2):
        befores, afters = ([rank['share'][key][place] for rank in ranks] for key in ('before', 'after'))
        assert any(not torch.equal(befores[0][name], befores[1][name]) for name in befores[0] if 'running' in name)
        for name in befores[0]:
            if 'running' in name:
                assert torch.equal(afters[0][name], afters[1][name])
                wanted = (befores[0][name].double() + befores[1][name].double()) / 2
                torch.testing.assert_close(afters[0][name], wanted.to(afters[0][name].dtype))
            else:
                assert all(torch.equal(before[name], after[name]) for before, after in zip(befores, afters))


def test_a_difference_between_ranks_is_told_by_the_first_tensor_on_all_ranks(ranks: Any) -> None:
    for found in (rank['disagree'] for rank in ranks):
        assert found['same'] == ''
        assert 'different networks now: bn2.weight of rank 1 is not that of rank 0' in found['bit']
        assert 'conv2.weight of rank 1' in found['order']
        assert 'bn4.running_var of rank 1' in found['statistics']
        assert 'averaged model: conv2.weight of rank 1' in found['averaged']
        assert 'conv2.weight is missing on rank 1' in found['structure']
        assert found['sound'] == (False, True)
        assert found['first'] == 7


def test_wrapped_anew_gradients_are_reduced_by_the_hook_that_was_there(ranks: Any) -> None:
    for found in (rank['wrap'] for rank in ranks):
        assert found['before'] and not found['kept'] and found['anew']
        assert found['compressed']
        assert found['power'] and found['forgotten'] and found['power_anew']
        assert 'fp16_compress_hook was registered before the run began' in found['early']


def test_new_branches_of_a_network_with_syncbn_get_syncbn() -> None:
    net = convert_sync_batchnorm(DyRepBackbone(SmallNetwork().eval(), input_shape=(1, 28, 28)))
    net.expand('conv2')
    norms = [module for name, module in net.named_modules()
             if name.startswith('conv2.branches') and isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 5 and all(type(norm) is nn.SyncBatchNorm for norm in norms)


def test_wrapping_in_parts_is_refused(ranks: Any) -> None:
    for found in (rank['wrap'] for rank in ranks):
        assert 'does not work with MMSeparateDistributedDataParallel' in found['parts']


def test_sharding_is_refused() -> None:
    # it can't be made without a GPU
    wrapper = MMFullyShardedDataParallel.__new__(MMFullyShardedDataParallel)
    nn.Module.__init__(wrapper)
    with pytest.raises(ValueError, match="(?s)with MMFullyShardedDataParallel.*type='MMDistributedDataParallel'"):
        distributed.check_wrapper(Bare(wrapper))


@pytest.mark.skipif(torch.cuda.is_available(), reason='mmengine chooses the device where there is a GPU')
@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
@pytest.mark.parametrize('given, wrapper', [
    (dict(), dict(find_unused_parameters=False, broadcast_buffers=False)),
    (dict(find_unused_parameters=True), dict(find_unused_parameters=True, broadcast_buffers=False)),
    (dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', static_graph=True)), dict(static_graph=True)),
], ids=['nothing', 'unused', 'wrapper'])
def test_processes_without_a_gpu_talk_over_gloo(monkeypatch: Any, launcher: str, given: dict, wrapper: dict) -> None:
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        # set and taken away, so that it is so again afterwards whatever is set meanwhile
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    names = dict(RANK='0', WORLD_SIZE='1') if launcher == 'pytorch' else dict(
        SLURM_PROCID='0', SLURM_NTASKS='1', SLURM_LOCALID='0', SLURM_NODELIST='here')
    for name, value in dict(names, MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port())).items():
        monkeypatch.setenv(name, value)
    cfg = Config(dict(launcher=launcher, **copy.deepcopy(given)))
    try:
        set_processes(cfg)
        assert dist.get_backend() == 'gloo' and dist.get_world_size() == 1
    finally:
        dist.destroy_process_group()
    assert cfg.model_wrapper_cfg == dict(type='MMDistributedDataParallel', device_ids=None, **wrapper)


def test_one_process_starts_nothing() -> None:
    cfg = Config(dict(launcher='none'))
    set_processes(cfg)
    assert not dist.is_initialized() and 'model_wrapper_cfg' not in cfg


def test_alone_nothing_is_communicated(tmp_path: Path) -> None:
    net = SmallNetwork()
    before = copy.deepcopy(net.state_dict())
    distributed.mean_statistics([net])
    distributed.check_agreement([net], 'now')
    distributed.wrap_anew(Bare(net))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert distributed.true_on_all(False) is False and distributed.from_first_rank('x') == 'x'
