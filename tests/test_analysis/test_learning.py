"""How far branches have turned: out of checkpoints whose branches are known."""
from pathlib import Path

import pytest
import torch
from torch import nn

from mmdyrep.analysis.learning import Learned, read_learning
from mmdyrep.models import DyRepBackbone


def net() -> DyRepBackbone:
    torch.manual_seed(0)
    return DyRepBackbone(nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)), max_depth=2)


def save(model: DyRepBackbone, folder: Path, epoch: int) -> None:
    state = {f'backbone.{key}': value.clone() for key, value in model.state_dict().items()}
    torch.save({'state_dict': state, 'meta': {}}, folder / f'epoch_{epoch}.pth')


def by_name(found: list) -> dict:
    return {(item.op.replace('backbone.', ''), item.branch): item for item in found}


def test_cosine_share_and_age_of_each_branch(tmp_path: Path) -> None:
    model = net()
    save(model, tmp_path, 1)
    model.expand('0')
    save(model, tmp_path, 2)
    block = model.get_submodule('0')
    with torch.no_grad():
        for branch in block.branches.values():
            branch.bn.weight.fill_(0.5)
        block.branches['kxk'].bn.weight.fill_(2.0)
        block.branches['1x1'].conv.weight.neg_()
        block.branches['1xk'].conv.weight.mul_(3)
        flat = block.branches['kx1'].conv.weight.view(-1)
        start = flat.clone()
        # at a right angle to where it was
        flat[0::2], flat[1::2] = -start[1::2], start[0::2]
    save(model, tmp_path, 3)
    model.expand('3')
    save(model, tmp_path, 4)
    found = by_name(read_learning(tmp_path))
    assert {op for op, _ in found} == {'0', '3'}
    assert {item.age for (op, _), item in found.items() if op == '0'} == {2}
    assert {item.age for (op, _), item in found.items() if op == '3'} == {0}
    assert found['0', '1x1'].cosine == pytest.approx(-1)
    assert found['0', '1xk'].cosine == pytest.approx(1)
    assert found['0', 'kx1'].cosine == pytest.approx(0, abs=1e-6)
    assert found['0', 'kxk'].cosine == pytest.approx(1)
    number = len(block.branches) - 1
    assert found['0', 'kxk'].share == pytest.approx(4 / (4 + number / 4))
    assert found['0', '1x1'].share == pytest.approx(0.25 / (4 + number / 4))
    assert sum(item.share for (op, _), item in found.items() if op == '3') == pytest.approx(1)


def test_what_was_removed_and_came_again_is_new(tmp_path: Path) -> None:
    model = net()
    model.expand('0')
    save(model, tmp_path, 1)
    model.remove('0', [name for name in model.get_submodule('0').branches if name != 'kxk'])
    save(model, tmp_path, 2)
    model.expand('0')
    save(model, tmp_path, 3)
    found = read_learning(tmp_path)
    assert {item.age for item in found} == {0}


def test_a_convolution_that_was_expanded_itself_has_no_cosine(tmp_path: Path) -> None:
    model = net()
    model.expand('3')
    save(model, tmp_path, 1)
    model.expand('3.branches.kxk.conv')
    save(model, tmp_path, 2)
    found = by_name(read_learning(tmp_path))
    assert found['3', 'kxk'] == Learned('backbone.3', 'kxk', 1, None, found['3', 'kxk'].share)
    assert found['3', '1x1'].cosine == pytest.approx(1)
    assert found['3.branches.kxk.conv', '1x1'].age == 0


@pytest.mark.parametrize('epochs', [(), (1, ), (2, 3), (1, 3, 4), (14, 15)])
def test_checkpoints_that_were_not_all_kept_are_refused(epochs: tuple, tmp_path: Path) -> None:
    for epoch in epochs:
        save(net(), tmp_path, epoch)
    with pytest.raises(ValueError, match='max_keep_ckpts=-1'):
        read_learning(tmp_path)
