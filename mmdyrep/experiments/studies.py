"""Studies of this package, none of the paper's: does growth pay, where, and with which settings?

Twins share seed, initial weights of the plain network and order of the images, so methods are compared seed by seed.
Settings are chosen (``choose_...``) on seeds 1 to 3 and on training images that nothing is trained on; the studies that
report (``growth_...``) have other seeds and the test images.
"""
from dataclasses import replace
from typing import Any, Dict, List, Mapping, Tuple

from .experiment import Claim, Experiment, Run, Study
from .index import EXPERIMENTS
from .parts import HOOK, SPACE

INIT = 'model.backbone.branch_init'
EPOCHS, IMAGES = 15, 12000
# the training uses the first images, so the last ones are free
VALIDATION = {'val_dataloader.dataset.split': 'train', 'val_dataloader.dataset.test_mode': False,
              'val_dataloader.dataset.indices': -10000}
LOADERS = {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False,
           'val_dataloader.num_workers': 0, 'val_dataloader.persistent_workers': False}
NETWORKS = {'vgg16': 'VGG-16', 'resnet18': 'ResNet-18'}
CONFIGS = {'plain': 'small/{}-w8_b64_fashion-mnist.py', 'static': 'small/{}-w8-dbb_b64_fashion-mnist.py',
           'dyrep': 'small/dyrep_{}-w8_b64_fashion-mnist.py'}

PLAIN, REPVGG, DBB, SEVEN, SEVEN_ONLINE = ('plain', 'RepVGG, static', 'DBB, static', 'seven branches, static',
                                           'seven branches, static, online')
PAPER, NO_DEP, RANDOM = 'DyRep, the paper\'s', 'DyRep, the paper\'s without Dep', 'DyRep, random growth'
BEST, BATCH = 'DyRep, recommended', 'DyRep, recommended, batch statistics'

NORM, ONLINE = 'model.backbone.keep_norm', {'model.backbone.online': True}
# of the config: no norm behind, 1x1_kxk begins as the identity; with seven branches the norm is kept, as by DyRep
STATIC: Dict[str, Mapping[str, Any]] = {
    REPVGG: {SPACE: 'repvgg'}, DBB: {},
    SEVEN: {SPACE: 'dyrep', NORM: True}, SEVEN_ONLINE: {SPACE: 'dyrep', NORM: True, **ONLINE}}

SPLIT = {INIT: 'split'}
NO_CUTS = {HOOK + 'dep': None}
# two ops at each of the first four of fifteen updates, eight of VGG-16's thirteen; the rest of the training is theirs.
# With four ops each, as in first trials, all are expanded soon, and nothing is cheaper than a static network
EARLY = {HOOK + 'num_grow': 2, HOOK + 'end': 4, HOOK + 'metric': 'snip_bn', **NO_CUTS}
RECOMMENDED: Dict[str, Any] = {**EARLY, **SPLIT, **ONLINE}
DYREP: Dict[str, Mapping[str, Any]] = {
    PAPER: {}, NO_DEP: NO_CUTS, RANDOM: {**RECOMMENDED, HOOK + 'metric': 'random'}, BEST: RECOMMENDED,
    BATCH: {**EARLY, **SPLIT}}
# what is tried: the recommended settings, and what differs from them in one thing
LEAD = 'early, split, online'
TRIED: Dict[str, Mapping[str, Any]] = {
    LEAD: RECOMMENDED,
    'batch statistics': {**EARLY, **SPLIT},
    'default initialization': {**EARLY, **ONLINE},
    'alpha 0.5': {**EARLY, **ONLINE, INIT + '.type': 'split', INIT + '.alpha': 0.5},
    'an op at a time, to the end': {**SPLIT, **ONLINE, **NO_CUTS, HOOK + 'metric': 'snip_bn'},
    'twice the ops': {**RECOMMENDED, HOOK + 'num_grow': 4},
    'no nesting': {**RECOMMENDED, 'model.backbone.max_depth': 1},
    'with Dep': {key: value for key, value in RECOMMENDED.items() if key != HOOK + 'dep'}}

CLAIMS: Tuple[Claim, ...] = (
    Claim('Recommended DyRep is above the plain network', BEST, PLAIN),
    Claim('DyRep as in the paper is above the plain network', PAPER, PLAIN),
    Claim('Dep helps DyRep as in the paper', PAPER, NO_DEP),
    Claim('DyRep as in the paper is above static DBB, in less time', PAPER, DBB, time=1.0),
    Claim('Recommended DyRep with batch statistics is above the plain network', BATCH, PLAIN),
    Claim('Growing where the saliency is greatest beats growing anywhere', BEST, RANDOM),
    Claim('Recommended DyRep is at most 0.1 below static DBB, in at most 0.6 of its time', BEST, DBB, 0.1, 0.6),
    Claim('Recommended DyRep is at most 0.1 below seven static branches, in at most 0.6 of their time', BEST, SEVEN,
          0.1, 0.6))


def run(row: str, network: str, times: int, kind: str, options: Mapping[str, Any] = {}) -> Run:
    """A training of 15 epochs, or so many times as long; updates keep their share of it.

    Args:
        row (str): Its name.
        network (str): Out of `NETWORKS`.
        times (int): How much longer than the short training.
        kind (str): 'plain', 'static' or 'dyrep'.
        options (Mapping): What is changed in the config, of the short training.
    """
    epochs = EPOCHS * times
    length = {'train_cfg.max_epochs': epochs, 'train_cfg.val_interval': epochs, 'param_scheduler.T_max': epochs}
    options = {key: times * value if key == HOOK + 'end' else value for key, value in options.items()}
    hook = {HOOK + 'interval': times} if kind == 'dyrep' else {}
    return Run(row, f'{epochs} epochs', CONFIGS[kind].format(network),
               {'train_dataloader.dataset.indices': IMAGES, **length, **LOADERS, **hook, **options})


def growth(network: str, times: int) -> Study:
    """All methods, on seeds that nothing was chosen on."""
    runs = [run(PLAIN, network, times, 'plain'),
            *(run(row, network, times, 'static', options) for row, options in STATIC.items()),
            *(run(row, network, times, 'dyrep', options) for row, options in DYREP.items())]
    return Study(
        f'Does growth pay? {NETWORKS[network]}, {EPOCHS * times} epochs',
        f'{NETWORKS[network]} at 1/8 width on {IMAGES:,} images of Fashion-MNIST, tested on the 10,000 test images; '
        'one recipe for all. Seeds from 4 on: settings were chosen on seeds 1 to 3, on training images held out.',
        full=[], small=runs, column='training', first_seed=4, references=(PLAIN, SEVEN, DBB, RANDOM),
        claims=CLAIMS)


def choose(network: str) -> Study:
    """The settings that are tried, on the last 10,000 training images, which nothing is trained on."""
    runs = [run(PLAIN, network, 1, 'plain'),
            *(run(row, network, 1, 'dyrep', options) for row, options in TRIED.items())]
    return Study(
        f'The choice of settings: {NETWORKS[network]}, {EPOCHS} epochs',
        f'{len(TRIED)} settings of DyRep for {NETWORKS[network]} at 1/8 width, trained on the first {IMAGES:,} '
        f'training images of Fashion-MNIST and compared on the last 10,000: no test image is seen. "{LEAD}": updates '
        'after epochs 1 to 4, two ops each, metric snip_bn, branches split off the op, online, no Dep; each of the '
        'others differs from it in what it is named after.',
        full=[], small=_validated(runs), column='training', references=(PLAIN, LEAD))


def learning(network: str) -> Study:
    """What becomes of branches: as in the paper, early and as the paper starts them, early and split."""
    kept = {'default_hooks.checkpoint.max_keep_ckpts': -1}
    rows: Dict[str, Mapping[str, Any]] = {
        PAPER: {}, 'DyRep, early': EARLY, 'DyRep, early, split branches': {**EARLY, **SPLIT}}
    return Study(
        f'What becomes of new branches: {NETWORKS[network]}, {EPOCHS} epochs',
        f'How far the weights of new branches turn in a training of {NETWORKS[network]} at 1/8 width on {IMAGES:,} '
        'images of Fashion-MNIST, and what they contribute at its end. "Early": two ops at each of the first four '
        'updates, metric snip_bn, no Dep.',
        full=[], small=[replace(run(row, network, 1, 'dyrep', {**options, **kept}), learning=True)
                        for row, options in rows.items()],
        column='training', picture='learning', references=(PAPER, ))


def _validated(runs: List[Run]) -> List[Run]:
    return [replace(run, options={**run.options, **VALIDATION}) for run in runs]


STUDIES: Dict[str, Study] = {
    'learning_vgg16': learning('vgg16'),
    **{f'choose_{network}': choose(network) for network in NETWORKS},
    **{f'growth_{network}': growth(network, 1) for network in NETWORKS},
    **{f'growth_{network}_long': growth(network, 4) for network in NETWORKS}}


def find(name: str) -> Experiment:
    """An experiment of the paper or a study, by its name.

    Raises:
        ValueError: If there is none.
    """
    found = {**EXPERIMENTS, **STUDIES}
    if name not in found:
        raise ValueError(f'there is no experiment {name!r}; there are {", ".join(found)}')
    return found[name]
