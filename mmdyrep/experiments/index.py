"""What each experiment of the paper consists of: its runs, what is compared, and the paper's figures.

A run is a config and what is changed in it. The small runs are the same comparison on Fashion-MNIST with networks of
1/8 width: the same methods, another size. What several experiments have in common is trained once.
"""
from typing import Dict

from .experiment import Experiment
from .parts import CIFAR, EPOCHS, HOOK, SPACE, cifar, imagenet, large, retrained, vgg
from .transfer import FULL_TRANSFER, SMALL_TRANSFER

SPACES = {'RepVGG': 'repvgg', 'DBB': 'dbb', 'RepNAS': 'dyrep', 'DyRep': 'dyrep'}
GAMMA = 'model.backbone.gamma_init'

ORIGIN = cifar('Origin', 'plain', value=(94.68, 73.69), macs=(313e6, 313e6), parameters=(15.0e6, 15.0e6))
DBB = cifar('DBB', 'dbb', value=(94.97, 74.04), macs=(728e6, 728e6), parameters=(34.7e6, 34.7e6))
DYREP = cifar('DyRep', 'dyrep', value=(95.22, 74.37), macs=(597e6, 582e6), parameters=(26.4e6, 27.1e6))

# Table 3: accuracy (%), average MACs (G) and parameters (M)
COSTS = {
    'MobileNet': {'Origin': (71.89, 0.57, 4.2), 'DBB': (72.88, 0.61, 4.3), 'DyRep': (72.96, 0.58, 4.3)},
    'ResNet-18': {'Origin': (69.54, 1.81, 11.7), 'DBB': (70.99, 4.13, 26.3), 'DyRep': (71.58, 2.42, 16.9)},
    'ResNet-34': {'Origin': (73.31, 3.66, 21.8), 'DBB': (74.33, 8.44, 49.9), 'DyRep': (74.68, 4.72, 33.1)},
    'ResNet-50': {'Origin': (76.14, 4.09, 25.6), 'DBB': (76.71, 6.79, 40.7), 'DyRep': (77.08, 5.05, 31.5)},
}
KINDS = {'Origin': 'plain', 'DBB': 'dbb', 'DyRep': 'dyrep'}
TABLE3 = [imagenet(row, network, KINDS[row], value=value, macs=macs, parameters=parameters)
          for network, rows in COSTS.items() for row, (value, macs, parameters) in rows.items()]
SMALL3 = [large(row, network, KINDS[row]) for network, rows in COSTS.items() for row in rows]

# read off Figure 4 they would be guesses: the paper prints no figures there
SCALES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
# t of Table 9: accuracy, MACs and parameters (M)
INTERVALS = {5: (95.39, 1575, 83.4), 10: (95.33, 992, 33.6), 15: (95.22, 597, 26.4), 30: (94.91, 522, 23.7),
             50: (94.82, 430, 20.3)}
METRICS = {'random': (94.25, 74.03), 'grad_norm': (94.71, 74.19), 'snip': (94.97, 74.56), 'grasp': (94.82, 74.73),
           'synflow': (95.22, 74.91), 'vote': (95.03, 74.79)}
# of 100 epochs; how long t is there the paper does not say
ENDS = (20, 40, 60, 80, 100)
HUNDRED = {'train_cfg.max_epochs': 100, 'param_scheduler.T_max': 100, 'param_scheduler.end': 100, HOOK + 'interval': 5}

EXPERIMENTS: Dict[str, Experiment] = {
    'table1': Experiment(
        'Table 1: operation spaces',
        'The branches of each method, and what a network costs that has all of them in every op. Nothing is trained.',
        full=[*(imagenet('plain', network, 'plain') for network in ('ResNet-18', 'ResNet-50', 'MobileNet')),
              *(imagenet(row, network, 'dbb', {} if space == 'dbb' else {SPACE: space}) for row, space in SPACES.items()
                for network in ('ResNet-18', 'ResNet-50', 'MobileNet'))],
        small=[vgg('plain', 'plain', column='VGG-16'),
               *(vgg(row, 'dbb', {} if space == 'dbb' else {SPACE: space}, 'VGG-16') for row, space in SPACES.items())],
        column='network', picture='counts'),
    'table2': Experiment(
        'Table 2: VGG-16 on CIFAR',
        'The plain network, DBB in every op from the start, DyRep; one recipe for all.',
        full=[*ORIGIN, *DBB, *DYREP],
        small=[vgg('Origin', 'plain'), vgg('DBB', 'dbb'), vgg('DyRep')]),
    'table3': Experiment(
        'Table 3: MobileNet and ResNets on ImageNet',
        'The same three methods on networks for ImageNet; the 7x7 stem of DBB\'s ResNets stays plain.',
        full=TABLE3, small=SMALL3, column='network'),
    'table4': Experiment(
        'Table 4: RepVGG',
        'RepVGG with its own branches, with those that RepNAS finds (ODBB), and grown by DyRep from its 3x3 '
        'convolutions.',
        full=[imagenet(row, network, kind, value=value) for network, rows in {
            'RepVGG-A2': {('RepVGG', 'repvgg'): 76.48, ('ODBB', 'odbb'): 76.86, ('DyRep', 'dyrep'): 76.91},
            'RepVGG-B2g4': {('RepVGG', 'repvgg'): 79.38, ('DyRep', 'dyrep'): 80.12},
            'RepVGG-B3': {('RepVGG', 'repvgg'): 80.52, ('ODBB', 'odbb'): 80.97, ('DyRep', 'dyrep'): 81.12},
        }.items() for (row, kind), value in rows.items()],
        small=[large('RepVGG', 'RepVGG', 'repvgg'), large('ODBB', 'RepVGG', 'odbb'), large('DyRep', 'RepVGG', 'dyrep')],
        column='network',
        theirs=(('ResNet-34', '74.17'), ('ResNet-50', '76.31'),
                ('ResNeXt-50', '77.46'), ('ResNet-101', '77.21'), ('ResNeXt-101', '78.42'))),
    'table5': Experiment(
        'Table 5: detection and segmentation',
        'Pre-training (C), the downstream training (D) or both with Rep; else one recipe for all.',
        full=FULL_TRANSFER, small=SMALL_TRANSFER, column='task'),
    'table6': Experiment(
        'Table 6: with and without Dep',
        'DyRep that removes redundant branches, and DyRep that only adds.',
        full=[ORIGIN[0], *cifar('DyRep w/ Dep', 'dyrep', value=95.22, macs=597e6, parameters=26.4e6),
              *cifar('DyRep w/o Dep', 'dyrep', {HOOK + 'dep': None}, value=95.03, macs=658e6, parameters=29.3e6)],
        small=[vgg('Origin', 'plain'), vgg('DyRep w/ Dep'), vgg('DyRep w/o Dep', 'dyrep', {HOOK + 'dep': None})]),
    'table7': Experiment(
        'Table 7: structures retrained from scratch',
        'DyRep-N is trained from the start with the structure that DyRep had after epoch N, of 600 in the paper, of '
        f'{EPOCHS} at small size; it stays as it is.',
        full=[ORIGIN[0],
              retrained('DyRep-200', DBB[0], DYREP[0], 200, value=94.83, macs=466e6, parameters=18.2e6),
              retrained('DyRep-400', DBB[0], DYREP[0], 400, value=95.04, macs=587e6, parameters=20.3e6),
              retrained('DyRep-600', DBB[0], DYREP[0], 600, value=94.93, macs=766e6, parameters=24.4e6), DYREP[0]],
        small=[vgg('Origin', 'plain'),
               *(retrained(f'DyRep-{epoch}', vgg('DBB', 'dbb'), vgg('DyRep'), epoch) for epoch in (3, 6, 10)),
               vgg('DyRep')]),
    'table8': Experiment(
        'Table 8: four branches or seven',
        'ResNet-50 with DBB and DyRep, each in DBB\'s space of operations and in the larger one.',
        full=[imagenet('Origin', 'ResNet-50', 'plain', value=76.14, macs=4.09, parameters=25.6),
              imagenet('DBB, 4', 'ResNet-50', 'dbb', value=76.71, macs=6.79, parameters=40.7),
              imagenet('DyRep, 4', 'ResNet-50', 'dyrep', {SPACE: 'dbb'}, value=76.98, macs=4.93, parameters=30.2),
              imagenet('DBB, 7', 'ResNet-50', 'dbb-7ops', value=76.87, macs=8.02, parameters=48.3),
              imagenet('DyRep, 7', 'ResNet-50', 'dyrep', value=77.08, macs=5.05, parameters=31.5)],
        small=[large('Origin', 'ResNet-50', 'plain'), large('DBB, 4', 'ResNet-50', 'dbb'),
               large('DyRep, 4', 'ResNet-50', 'dyrep', {SPACE: 'dbb'}),
               large('DBB, 7', 'ResNet-50', 'dbb', {SPACE: 'dyrep'}), large('DyRep, 7', 'ResNet-50', 'dyrep')],
        column='network'),
    'table9': Experiment(
        'Table 9: how often DyRep updates',
        f'An update every t epochs, of 600 in the paper, of {EPOCHS} at small size.',
        full=[ORIGIN[0], DBB[0], *(run for t, (value, macs, parameters) in INTERVALS.items() for run in cifar(
            f'DyRep, t = {t}', 'dyrep', {} if t == 15 else {HOOK + 'interval': t}, value=value, macs=macs * 1e6,
            parameters=parameters * 1e6))],
        small=[vgg('Origin', 'plain'), vgg('DBB', 'dbb'),
               *(vgg(f'DyRep, t = {t} of {EPOCHS}', 'dyrep', {} if t == 1 else {HOOK + 'interval': t})
                 for t in (1, 2, 3, 4, 5))]),
    'table10': Experiment(
        'Table 10: the metric that chooses the op',
        'DyRep with each metric; nothing else differs. snip_bn is none of the paper\'s.',
        full=[*cifar('origin', 'plain', value=(94.68, 74.10)),
              *(run for metric, value in METRICS.items() for run in cifar(
                  metric, 'dyrep', {} if metric == 'synflow' else {HOOK + 'metric': metric}, value=value))],
        small=[vgg('origin', 'plain'), *(vgg(metric, 'dyrep', {} if metric == 'synflow' else {HOOK + 'metric': metric})
                                         for metric in (*METRICS, 'snip_bn'))]),
    'figure1': Experiment(
        'Figure 1: accuracy against the cost of training',
        'The ResNets of Table 3: one line a network, from the plain one over DyRep to DBB.',
        full=TABLE3[3:], small=SMALL3[3:], column='network', picture='costs'),
    'figure4': Experiment(
        'Figure 4: the first scale of new branches',
        'DyRep whose new branches start with another gamma.',
        full=[run for scale in SCALES
              for run in cifar(f'gamma {scale:g}', 'dyrep', {} if scale == 0.01 else {GAMMA: scale})],
        small=[vgg(f'gamma {scale:g}', 'dyrep', {} if scale == 0.01 else {GAMMA: scale}) for scale in SCALES]),
    'figure5': Experiment(
        'Figure 5: convergence of ResNet-34',
        'Accuracy on the validation set after each epoch, of the ResNet-34 runs of Table 3.',
        full=TABLE3[6:9], small=SMALL3[6:9], column='network', picture='curves'),
    'figure6': Experiment(
        'Figure 6: the first convolution as DyRep has grown it',
        'The stem of the ResNet-18 of Table 3 at the end of its training, with the importance of each branch.',
        full=TABLE3[5:6], small=SMALL3[5:6], column='network', picture='stem'),
    'figure7': Experiment(
        'Figure 7: growth that ends early',
        f'DyRep-N neither adds nor removes after epoch N, of 100 in the paper, of {EPOCHS} at small size.',
        full=[run for end in ENDS for run in cifar(f'DyRep-{end}', 'dyrep', {**HUNDRED, HOOK + 'end': end}, 2)
              if run.column == CIFAR[1]],
        small=[vgg(f'DyRep-{end * EPOCHS // 100}', 'dyrep', {} if end == 100 else {HOOK + 'end': end * EPOCHS // 100})
               for end in ENDS],
        picture='curves'),
}
