"""What each experiment of the paper consists of: its runs, what is compared, and the paper's figures.

A run is a config and what is changed in it. The small runs are the same comparison on Fashion-MNIST with a VGG-16 of
1/8 width: the same methods, another size.
"""
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping


@dataclass(frozen=True)
class Run:
    """A training.

    Args:
        row (str): What is compared.
        column (str): The data set.
        config (str): Below configs/.
        options (dict): What is changed in the config, as ``--cfg-options`` has it.
        paper (dict): The paper's figures: ``top1`` (%), ``macs``, ``parameters``.
    """

    row: str
    column: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A table or a figure.

    Args:
        title (str): One line.
        question (str): What is compared, and what stays the same.
        full (list[Run]): As in the paper.
        small (list[Run]): On Fashion-MNIST.
    """

    title: str
    question: str
    full: List[Run]
    small: List[Run]


HOOK = 'default_hooks.dyrep.'
PLAIN, DBB, DYREP = ('small/vgg16-w8_b64_fashion-mnist.py', 'small/vgg16-w8-dbb_b64_fashion-mnist.py',
                     'small/dyrep_vgg16-w8_b64_fashion-mnist.py')
CIFAR = ('CIFAR-10', 'CIFAR-100')


def _cifar(row: str, kind: str, options: Mapping[str, Any] = {}, **paper: Any) -> List[Run]:
    """Runs of a method on the CIFAR sets; figures of the paper as a pair, or for CIFAR-10 alone."""
    names = {'plain': 'plain/vgg16_1xb128-plain_{}.py', 'dbb': 'dbb/vgg16_1xb128-dbb_{}.py',
             'dyrep': 'dyrep/vgg16_1xb128_{}.py'}
    pairs = {key: value if isinstance(value, tuple) else (value, ) for key, value in paper.items()}
    number = max(len(pair) for pair in pairs.values()) if pairs else 1
    return [Run(row, column, names[kind].format(column.lower().replace('-', '')), options,
                {key: pair[place] for key, pair in pairs.items()}) for place, column in enumerate(CIFAR[:number])]


# a minute or two on one core: 500 steps of 32 images; tested on 2,500
SHORT = {'train_dataloader.dataset.indices': 1600, 'train_dataloader.batch_size': 32, 'train_cfg.max_epochs': 10,
         'param_scheduler.T_max': 10, 'train_cfg.val_interval': 2, 'val_dataloader.dataset.indices': 2500,
         'default_hooks.logger.interval': 25, 'train_dataloader.num_workers': 0,
         'train_dataloader.persistent_workers': False, 'val_dataloader.num_workers': 0,
         'val_dataloader.persistent_workers': False}


def _small(row: str, config: str = DYREP, options: Mapping[str, Any] = {}) -> Run:
    calibration = {HOOK + 'calibration_batches': 10} if 'dyrep_' in config else {}
    return Run(row, 'Fashion-MNIST', config, {**SHORT, **calibration, **options})


METRICS = {'random': (94.25, 74.03), 'grad_norm': (94.71, 74.19), 'snip': (94.97, 74.56), 'grasp': (94.82, 74.73),
           'synflow': (95.22, 74.91), 'vote': (95.03, 74.79)}
# read off Figure 4 they would be guesses: the paper prints no figures there
SCALES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
# epochs of growth, of 100 in the paper and of 10 here; how long its t is there the paper does not say
ENDS = {20: 2, 40: 4, 60: 6, 80: 8, 100: 10}
HUNDRED = {'train_cfg.max_epochs': 100, 'param_scheduler.T_max': 100, 'param_scheduler.end': 100, HOOK + 'interval': 5}
ORIGIN = _cifar('Origin', 'plain', top1=(94.68, 73.69), macs=(313e6, 313e6), parameters=(15.0e6, 15.0e6))
DYREP_CIFAR = _cifar('DyRep', 'dyrep', top1=(95.22, 74.37), macs=(597e6, 582e6), parameters=(26.4e6, 27.1e6))

EXPERIMENTS: Dict[str, Experiment] = {
    'table2': Experiment(
        'Table 2: VGG-16 on CIFAR',
        'The plain network, DBB in every op from the start, DyRep; one recipe for all.',
        full=[*ORIGIN, *_cifar('DBB', 'dbb', top1=(94.97, 74.04), macs=(728e6, 728e6), parameters=(34.7e6, 34.7e6)),
              *DYREP_CIFAR],
        small=[_small('Origin', PLAIN), _small('DBB', DBB), _small('DyRep')]),
    'table6': Experiment(
        'Table 6: with and without Dep',
        'DyRep that removes redundant branches, and DyRep that only adds.',
        full=[ORIGIN[0], *_cifar('DyRep w/ Dep', 'dyrep', top1=95.22, macs=597e6, parameters=26.4e6),
              *_cifar('DyRep w/o Dep', 'dyrep', {HOOK + 'dep': None}, top1=95.03, macs=658e6, parameters=29.3e6)],
        small=[_small('Origin', PLAIN), _small('DyRep w/ Dep'), _small('DyRep w/o Dep', DYREP, {HOOK + 'dep': None})]),
    'table10': Experiment(
        'Table 10: the metric that chooses the op',
        'DyRep with each metric; nothing else differs. snip_bn is none of the paper\'s.',
        full=[*_cifar('origin', 'plain', top1=(94.68, 74.10)),
              *(run for metric, top1 in METRICS.items()
                for run in _cifar(metric, 'dyrep', {HOOK + 'metric': metric}, top1=top1))],
        small=[_small('origin', PLAIN),
               *(_small(metric, DYREP, {HOOK + 'metric': metric} if metric != 'synflow' else {})
                 for metric in (*METRICS, 'snip_bn'))]),
    'figure4': Experiment(
        'Figure 4: the first scale of new branches',
        'DyRep whose new branches start with another gamma.',
        full=[run for scale in SCALES
              for run in _cifar(f'gamma {scale:g}', 'dyrep', {'model.backbone.gamma_init': scale})],
        small=[_small(f'gamma {scale:g}', DYREP, {'model.backbone.gamma_init': scale} if scale != 0.01 else {})
               for scale in SCALES]),
    'figure7': Experiment(
        'Figure 7: growth that ends early',
        'DyRep-N neither adds nor removes after epoch N, of 100 in the paper, of 10 at small size.',
        full=[Run(f'DyRep-{end}', 'CIFAR-100', 'dyrep/vgg16_1xb128_cifar100.py', {**HUNDRED, HOOK + 'end': end})
              for end in ENDS],
        small=[_small(f'DyRep-{end}', DYREP, {HOOK + 'end': end} if end < 10 else {}) for end in ENDS.values()]),
}
