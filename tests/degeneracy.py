"""Eq. 4 in front of batch norm: ``python -m tests.degeneracy`` prints the table of docs/saliency.md."""
import logging
from typing import Dict, List, Tuple

import torch
import torch.nn.functional as F

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


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    print('| conv | ratio, float32 | ratio, float64 | score, float32 | score, float64 |\n|---|---|---|---|---|')
    for name, (single, double) in ratios().items():
        print(f'| {name} | {single[0]:.1e} | {double[0]:.1e} | {single[1]:.1e} | {double[1]:.1e} |', flush=True)


if __name__ == '__main__':
    main()
