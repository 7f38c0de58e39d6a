"""`mmdyrep.reparam` and `mmdyrep.dynamics` work where none of the OpenMMLab libraries is installed."""
import subprocess
import sys
from pathlib import Path

PROGRAM = '''
import sys

HIDDEN = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg')

class Hiding:
    """Finds nothing of OpenMMLab, as on a machine without it."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split('.')[0] in HIDDEN else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import torch
from torch import nn
import mmdyrep.reparam as reparam
from mmdyrep import dynamics

net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                    nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)).double()
x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
found = reparam.survey(net, reparam.probe(net, x))
saliency = dynamics.METRICS['snip_bn']()
net(x).square().sum().backward()
saliency.observe([dynamics.Op(name, net.get_submodule(name), net.get_submodule(bn)) for name, bn in found.ops.items()])
moment = dynamics.Moment(0, 0)
best = dynamics.rank(saliency.scores(list(found.ops), moment)).ranked[0]
before = net.eval()(x)
net.train()
calibration = dynamics.Calibration(net, net, [x])
fits = reparam.fitting(list(reparam.BRANCHES), reparam.Geometry.of(net.get_submodule(best)))
reparam.expand(net, best, fits, found.ops, gamma=0.01, measure=calibration)
assert (net.eval()(x) - before).abs().max() < 1e-9
reparam.remove(net, best, dynamics.redundant({'1x1': 0.1, '1x1_kxk': 0.9}, 0.1), found.ops)
plain = reparam.fused_copy(net, found.ops)
assert (plain(x) - before).abs().max() < 1e-9 and not reparam.describe(plain)['ops']
assert not [name for name in sys.modules if name.split('.')[0] in HIDDEN]
print('works')
'''


def test_reparam_and_dynamics_need_torch_alone():
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, '-c', PROGRAM], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'works'
