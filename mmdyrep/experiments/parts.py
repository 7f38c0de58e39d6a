"""Runs that the index is put together from."""
from typing import Any, List, Mapping

from .experiment import Run

HOOK, SPACE = 'default_hooks.dyrep.', 'model.backbone.space'
CIFAR = ('CIFAR-10', 'CIFAR-100')
IMAGENET = {'MobileNet': 'mobilenet-v1', 'ResNet-18': 'resnet18', 'ResNet-34': 'resnet34', 'ResNet-50': 'resnet50',
            'RepVGG-A2': 'repvgg-A2', 'RepVGG-B2g4': 'repvgg-B2g4', 'RepVGG-B3': 'repvgg-B3'}
FULL = {'plain': 'plain/{}_8xb32-plain_in1k.py', 'dbb': 'dbb/{}_8xb32-dbb_in1k.py',
        'dbb-7ops': 'dbb/{}_8xb32-dbb-7ops_in1k.py', 'repvgg': 'dbb/{}_8xb32-repvgg_in1k.py',
        'odbb': 'dbb/{}_8xb32-odbb_in1k.py', 'dyrep': 'dyrep/{}_8xb32_in1k.py'}

# a minute or two on one core: 500 steps of 32 images; tested on 2,500
SHORT = {'train_dataloader.dataset.indices': 1600, 'train_dataloader.batch_size': 32, 'train_cfg.max_epochs': 10,
         'param_scheduler.T_max': 10, 'train_cfg.val_interval': 2, 'val_dataloader.dataset.indices': 2500,
         'default_hooks.logger.interval': 25, 'train_dataloader.num_workers': 0,
         'train_dataloader.persistent_workers': False, 'val_dataloader.num_workers': 0,
         'val_dataloader.persistent_workers': False}
EPOCHS = SHORT['train_cfg.max_epochs']
VGG = {'plain': 'small/vgg16-w8_b64_fashion-mnist.py', 'dbb': 'small/vgg16-w8-dbb_b64_fashion-mnist.py',
       'dyrep': 'small/dyrep_vgg16-w8_b64_fashion-mnist.py'}
# networks for ImageNet see the images at twice their size, and 800 of them
LARGE = {'plain': 'small/{}-w8_b64_fashion-mnist-64.py', 'dbb': 'small/{}-w8-dbb_b64_fashion-mnist-64.py',
         'repvgg': 'small/{}-w8-repvgg_b64_fashion-mnist-64.py', 'odbb': 'small/{}-w8-odbb_b64_fashion-mnist-64.py',
         'dyrep': 'small/dyrep_{}-w8_b64_fashion-mnist-64.py'}
FILES = {'MobileNet': 'mobilenet-v1', 'ResNet-18': 'resnet18', 'ResNet-34': 'resnet18', 'ResNet-50': 'resnet18',
         'RepVGG': 'repvgg'}


def cifar(row: str, kind: str, options: Mapping[str, Any] = {}, columns: int = 0, **paper: Any) -> List[Run]:
    """VGG-16 on the CIFAR sets; figures of the paper as pairs, or for CIFAR-10 alone."""
    names = {'plain': 'plain/vgg16_1xb128-plain_{}.py', 'dbb': 'dbb/vgg16_1xb128-dbb_{}.py',
             'dyrep': 'dyrep/vgg16_1xb128_{}.py'}
    pairs = {key: value if isinstance(value, tuple) else (value, ) for key, value in paper.items()}
    number = columns or max((len(pair) for pair in pairs.values()), default=1)
    return [Run(row, column, names[kind].format(column.lower().replace('-', '')), options,
                {key: pair[place] for key, pair in pairs.items()}) for place, column in enumerate(CIFAR[:number])]


def imagenet(row: str, network: str, kind: str, options: Mapping[str, Any] = {}, **paper: float) -> Run:
    """A network of the paper on ImageNet, by its name there; MACs of the paper in G, parameters in M."""
    scale = {'value': 1, 'macs': 1e9, 'parameters': 1e6}
    return Run(row, network, FULL[kind].format(IMAGENET[network]), options,
               {key: value * scale[key] for key, value in paper.items()})


def vgg(row: str, kind: str = 'dyrep', options: Mapping[str, Any] = {}, column: str = 'Fashion-MNIST') -> Run:
    """The small VGG-16."""
    return Run(row, column, VGG[kind], {**SHORT, **_hook(kind), **options})


def large(row: str, network: str, kind: str, options: Mapping[str, Any] = {}) -> Run:
    """A small network of those for ImageNet, by the name of the large one."""
    inner = 'model.backbone.' + ('' if kind == 'plain' else 'backbone.')
    depth = {'ResNet-34': {inner + 'depth': 34}, 'ResNet-50': {inner + 'depth': 50, 'model.head.in_channels': 256}}
    return Run(row, network, LARGE[kind].format(FILES[network]),
               {**SHORT, 'train_dataloader.dataset.indices': 800, **depth.get(network, {}), **_hook(kind),
                **options})


def _hook(kind: str) -> Mapping[str, Any]:
    return {HOOK + 'calibration_batches': 10} if kind == 'dyrep' else {}


def retrained(row: str, static: Run, run: Run, epoch: int, **paper: float) -> Run:
    """A training of the structure that a run with DyRep had at an epoch, as it stays (Table 7).

    Args:
        row (str): Its name.
        static (Run): A training of the same network with blocks from the start, whose branches are replaced.
        run (Run): With DyRep.
        epoch (int): Whose structure is taken.
        paper (float): The paper's figures.
    """
    blocks = {'static': False, 'keep_norm': True, 'space': 'dyrep', 'branch_init': 'default',
              'structure': f'{{structure:{epoch}}}'}
    return Run(row, run.column, static.config,
               {**static.options, **{f'model.backbone.{key}': value for key, value in blocks.items()}}, paper,
               before=run)
