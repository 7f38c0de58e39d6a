"""A block in passes that a plain convolution allows: full backward hooks, one position, no image, symbolic tracing."""
import copy

import pytest
import torch
from torch import nn

from mmdyrep.reparam import BRANCHES, Block, Statistics, fold
from tests.convolutions import EXACT, error, images_for, scatter

CONV = dict(kernel_size=3, padding=1)


def whole_block(**kwargs) -> Block:
    block = Block(scatter(nn.Conv2d(4, 4, **CONV, **kwargs).double(), 0), nn.BatchNorm2d)
    with torch.no_grad():
        block.expand(list(BRANCHES)[1:], 0.5)
        block.branches['kxk'].conv = Block(block.branches['kxk'].conv, nn.BatchNorm2d)
        block.branches['kxk'].conv.expand(list(BRANCHES)[1:], 0.5)
    return scatter(block, 1)


def test_full_backward_hooks_on_every_module_see_whole_gradients():
    block, twin = whole_block(), whole_block()
    x = images_for(block.geometry, 0).requires_grad_()
    y = x.detach().clone().requires_grad_()
    seen = {}
    for name, module in block.named_modules():
        if not isinstance(module, nn.ModuleDict):
            module.register_full_backward_hook(lambda m, grad_in, grad_out, name=name: seen.update({name: grad_out[0]}))
    weights = torch.randn(block(x).shape, dtype=torch.float64)
    (block(x) * weights).sum().backward()
    (twin(y) * weights).sum().backward()
    assert error(x.grad, y.grad) < 1e-14
    assert torch.equal(seen[''], weights)
    assert torch.equal(seen['branches.1x1'], weights * block.scale.view(1, -1, 1, 1))
    assert len(seen) == sum(not isinstance(module, nn.ModuleDict) for module in block.modules())


def test_outputs_that_hooks_keep_are_not_written_over():
    block = whole_block().eval()
    kept = {}
    for name, branch in block.branches.items():
        branch.register_forward_hook(lambda m, args, out, name=name: kept.update({name: (out, out.clone())}))
    block(images_for(block.geometry, 0))
    assert len(kept) == len(BRANCHES)
    assert all(torch.equal(out, value) for out, value in kept.values())


def test_called_by_keyword_as_a_convolution():
    block = whole_block().eval()
    x = images_for(block.geometry, 0)
    assert torch.equal(block(input=x), block(x))


@pytest.mark.parametrize('images', [1, 0])
def test_one_position_in_one_image_and_no_image_train_where_a_convolution_with_a_bias_does(images):
    """The norms take their running statistics then; PyTorch's raise an error, or get statistics that are NaN."""
    conv = scatter(nn.Conv2d(4, 4, **CONV).double(), 0)
    plain = nn.Sequential(conv, nn.ReLU())
    net = nn.Sequential(Block(copy.deepcopy(conv), nn.BatchNorm2d, Statistics(torch.zeros(4), torch.ones(4))))
    with torch.no_grad():
        net[0].expand(list(BRANCHES)[1:], 0.5)
    # inner norms see the padded map, so values of its border
    inner = [net[0].branches[name].bn1 for name in ('1x1_kxk', '1x1_avg')]
    for norm in inner:
        norm.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(images, 4, 1, 1, dtype=torch.float64)
    out = net(x)
    assert out.shape == plain(x).shape
    assert images == 0 or error(out, conv(x)) < EXACT
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(norm.training for norm in net.modules() if isinstance(norm, nn.BatchNorm2d) and norm not in inner)
    for norm in inner:
        norm.train()
    net(x)
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())
    fold(net, '0', {'0': None})
    assert torch.isfinite(net(x)).all()


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('dilation', [1, 2])
def test_traced_symbolically_in_either_mode(training, dilation):
    block = Block(nn.Conv2d(4, 6, 3, padding=dilation, dilation=dilation).double(), nn.BatchNorm2d)
    with torch.no_grad():
        block.expand(['1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1'], 0.5)
    scatter(block, 0).train(training)
    x = images_for(block.geometry, 0)
    # a block whose norms work in eval mode runs as one convolution, its graph branch by branch
    assert error(torch.fx.symbolic_trace(copy.deepcopy(block))(x), block(x)) < EXACT
