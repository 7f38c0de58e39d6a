"""Whole networks to measure, plain and with blocks, and what an iteration and an evaluation of them do."""
import random
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, TypeVar

import torch
from torch import Tensor, nn

from mmdyrep.dynamics.calibration import tensors_in
from mmdyrep.models import DyRepBackbone

from . import reference
from .cases import Options, place
from .measuring import bytes_of

Wrap = Callable[[nn.Module], nn.Module]
Model = TypeVar('Model', bound=nn.Module)


class Kind(NamedTuple):
    """A network.

    Args:
        backbone (callable): Makes the plain backbone.
        size (int, optional): Height and width of its images. Defaults to that of the options.
        detector (callable, optional): Puts Faster R-CNN around a backbone.
    """

    backbone: Callable[[], nn.Module]
    size: Optional[int] = None
    detector: Optional[Wrap] = None


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision
        return getattr(torchvision.models, name)(num_classes=1000)
    return make


def _vgg() -> nn.Module:
    from mmdyrep.models.vgg_cifar import VGG_CIFAR
    return VGG_CIFAR(16)


def _detector_config() -> Any:
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config
    register_all_modules()
    return get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model


def _detector_backbone() -> nn.Module:
    from mmengine.registry import MODELS
    return MODELS.build(dict(_detector_config().backbone, type='mmdet.ResNet', init_cfg=None))


def _detector(backbone: nn.Module) -> nn.Module:
    from mmengine.registry import MODELS
    config = _detector_config()
    model = MODELS.build(dict(config, type='mmdet.FasterRCNN', backbone=dict(config.backbone, init_cfg=None)))
    model.backbone = backbone
    return model


NETWORKS: Dict[str, Kind] = {
    'resnet18': Kind(_torchvision('resnet18')), 'resnet50': Kind(_torchvision('resnet50')),
    'vgg16': Kind(_vgg, 32), 'faster_rcnn': Kind(_detector_backbone, None, _detector)}


def kind_of(name: str) -> Kind:
    """The network of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in NETWORKS:
        raise ValueError(f'unknown network {name!r}; there are {list(NETWORKS)}')
    return NETWORKS[name]


def _static(space: str, online: bool = False) -> Wrap:
    return lambda net: DyRepBackbone(net, space=space, static=True, online=online, exclude=stem(net))


def stem(net: nn.Module) -> Tuple[str, ...]:
    """First convolution of a ResNet, which stays plain, as in the paper's tables."""
    return ('conv1', ) if hasattr(net, 'conv1') else ()


def grown(net: nn.Module, number: int = 4, online: bool = False) -> DyRepBackbone:
    """A backbone with ``number`` random blocks, as a DyRep run has halfway."""
    net = DyRepBackbone(net, online=online, exclude=stem(net))
    for op in random.Random(0).sample(net.candidates(), number):
        net.expand(op)
    return net


def wraps(name: str, evaluation: bool = False) -> Dict[str, Wrap]:
    """Ways to train a network, by name; the plain one first."""
    wrap: Dict[str, Wrap] = {'plain': lambda net: net}
    if kind_of(name).detector or evaluation:  # all norms work in eval mode: `online` would change nothing
        return {**wrap, 'four blocks': grown, 'static seven': _static('dyrep')}
    return {**wrap, 'DBB of nn.Sequential': reference.with_dbb, 'static DBB': _static('dbb'),
            'static seven': _static('dyrep'), 'static DBB, online': _static('dbb', True),
            'static seven, online': _static('dyrep', True), 'four blocks': grown,
            'four blocks, online': lambda net: grown(net, online=True)}


def build(name: str, wrap: Wrap) -> nn.Module:
    """A network in train mode."""
    kind = kind_of(name)
    backbone = wrap(kind.backbone())
    return trainable(kind.detector(backbone) if kind.detector else backbone)


def trainable(model: Model) -> Model:
    """The model in train mode; ``train`` of some backbones returns nothing."""
    model.train()
    return model


def images(name: str, options: Options, batch: Optional[int] = None) -> Tensor:
    """A batch of noise."""
    size = kind_of(name).size or options.size
    generator = torch.Generator().manual_seed(0)
    return place(torch.randn(batch or options.batch, 3, size, size, generator=generator), options)


def _samples(x: Tensor) -> List[Any]:
    """Boxes for a detector, three an image."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    size = x.shape[2:]
    found = []
    for _ in range(len(x)):
        corners = torch.tensor([[.1, .1, .4, .5], [.3, .4, .9, .9], [.5, .1, .8, .3]]) * size[0]
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size,
                                             scale_factor=(1., 1.)))
        sample.gt_instances = InstanceData(bboxes=corners.to(x.device), labels=torch.arange(3, device=x.device))
        found.append(sample)
    return found


class Iteration:
    """Forward, backward and an SGD step of a network on a batch of noise.

    Args:
        model (nn.Module): In the modes that it shall train in.
        x (Tensor): Images.
        options (Options): Device, precision.
    """

    def __init__(self, model: nn.Module, x: Tensor, options: Options) -> None:
        self.model, self.x, self.options = place(model, options), x, options
        self.samples = _samples(x) if hasattr(model, 'rpn_head') else None
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(learning, lr=1e-5, momentum=0.9)

    def loss(self) -> Tensor:
        """Of the batch, with its graph."""
        with torch.autocast(self.options.device, enabled=self.options.amp):
            if self.samples is not None:
                return self.model.parse_losses(self.model.loss(self.x, self.samples))[0]
            first, *others = (out.float().square().mean() for out in tensors_in(self.model(self.x)))
            return sum(others, first)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    @property
    def standing(self) -> int:
        """Bytes of what is there between two iterations, gradients included."""
        tensors: List[Tensor] = [self.x, *self.model.parameters(), *self.model.buffers()]
        tensors += [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        tensors += [value for state in self.optimizer.state.values() for value in state.values()
                    if isinstance(value, Tensor)]
        return bytes_of(tensors)


class Evaluation:
    """Forward of a backbone in eval mode without gradients."""

    def __init__(self, model: nn.Module, x: Tensor, options: Options) -> None:
        self.model, self.x, self.options = place(model, options), x, options
        self.model.eval()

    @torch.no_grad()
    def __call__(self) -> None:
        with torch.autocast(self.options.device, enabled=self.options.amp):
            self.model(self.x)
