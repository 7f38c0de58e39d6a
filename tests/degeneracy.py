"""Eq. 4 in front of batch norm: ``python -m tests.degeneracy [grasp]`` prints the tables of docs/saliency.md."""
import logging
import sys
from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F

from mmdyrep.dynamics import Moment, build_metric
from mmdyrep.engine.scoring import ops_of
from tests.exactness import BATCH, HELD_OUT, RESNET, images_for, short_training


def ratios(number: int = 5) -> Dict[str, List[Tuple[float, float]]]:
    """|sum g * w| / sum |g * w| and the score sum g * w of each conv, in float32 and float64, means over batches."""
    trained = short_training(RESNET, 64)
    result: Dict[str, List[Tuple[float, float]]] = {}
    for dtype in (torch.float32, torch.float64):
        model = trained.model.to(dtype).train()
        sums: Dict[str, List[float]] = {}
        for batch in range(number):
            x, labels = images_for(trained.size, HELD_OUT + batch * BATCH, BATCH)
            model.zero_grad()
            F.cross_entropy(model(x.to(dtype)), labels).backward()
            for name in model.backbone.candidates():
                weight = model.backbone.get_submodule(name).weight
                product = (weight.grad * weight).double()
                entry = sums.setdefault(name, [0., 0.])
                entry[0] += product.sum().item() / number
                entry[1] += product.abs().sum().item() / number
        for name, (signed, absolute) in sums.items():
            result.setdefault(name, []).append((abs(signed) / absolute, signed))
    return result


def grasps(number: int = 4) -> Dict[str, Tuple[float, float, float, float]]:
    """Of each conv, means over batches: grasp and g * g; grasp of two batches and g * g of the one before."""
    trained = short_training(RESNET, 64)
    model = trained.model.double().train()
    batches = [images_for(trained.size, HELD_OUT + batch * BATCH, BATCH) for batch in range(number)]

    def loss(batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0].double()), batch[1])

    ops = ops_of(model.backbone)
    slopes = [torch.autograd.grad(loss(batch), [op.conv.weight for op in ops]) for batch in batches]
    tables = []
    for two in (False, True):
        metric = build_metric(dict(type='grasp', two_batches=two))
        metric.measure(model, loss, batches, ops)
        scores = metric.scores([op.name for op in ops], Moment(0, 0))
        direct = [sum((slopes[i][place] * slopes[i - two][place]).sum().item() for i in range(number)) / number
                  for place in range(len(ops))]
        tables.append((scores, direct))
    (same, squares), (other, products) = tables
    return {op.name: (same[op.name], squares[i], other[op.name], products[i]) for i, op in enumerate(ops)}


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    if sys.argv[1:] == ['grasp']:
        print('| conv | grasp | mean of g * g | grasp, two batches | mean of g * g of the batch before |\n'
              '|---|---|---|---|---|')
        for name, values in grasps().items():
            print(f'| {name} | ' + ' | '.join(f'{value:.4e}' for value in values) + ' |', flush=True)
        return
    print('| conv | ratio, float32 | ratio, float64 | score, float32 | score, float64 |\n|---|---|---|---|---|')
    for name, (single, double) in ratios().items():
        print(f'| {name} | {single[0]:.1e} | {double[0]:.1e} | {single[1]:.1e} | {double[1]:.1e} |', flush=True)


if __name__ == '__main__':
    main()
