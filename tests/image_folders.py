"""Folders as ImageNet, COCO and Cityscapes have them, of a few images of Fashion-MNIST."""
import json
from pathlib import Path

import mmcv
import numpy as np

from tests.images import fashion

SIDE = 64


def image_of(start: int, side: int = SIDE) -> np.ndarray:
    """Four test images side by side, three equal channels, of shape (side, side, 3)."""
    images = ((fashion(4, start)[0][:, 0] * 0.353 + 0.286) * 255).clamp(0, 255).numpy().astype(np.uint8)
    whole = np.block([[images[0], images[1]], [images[2], images[3]]])
    return np.repeat(mmcv.imresize(whole, (side, side))[..., None], 3, axis=2)


def imagenet_folder(root: Path, train: int = 16, val: int = 8) -> Path:
    """ImageNet: images by split and lists in meta/; the classes are 0 to 9."""
    for split, number, begin in (('train', train, 0), ('val', val, 1000)):
        lines = []
        for i in range(number):
            mmcv.imwrite(image_of(begin + 4 * i, 32), str(root / split / f'{i}.png'))
            lines.append(f'{i}.png {int(fashion(1, begin + 4 * i)[1][0])}\n')
        (root / 'meta').mkdir(parents=True, exist_ok=True)
        (root / 'meta' / f'{split}.txt').write_text(''.join(lines))
    return root


def coco_folder(root: Path, number: int = 4) -> Path:
    """COCO: each garment has a box, of the category of its class."""
    names = ('person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat', 'traffic light')
    for split in ('train2017', 'val2017'):
        images, boxes = [], []
        for i in range(number):
            mmcv.imwrite(image_of(4 * i), str(root / split / f'{i}.png'))
            images.append(dict(id=i, file_name=f'{i}.png', width=SIDE, height=SIDE))
            for place, label in enumerate(fashion(4, 4 * i)[1].tolist()):
                x, y = (place % 2) * SIDE // 2, (place // 2) * SIDE // 2
                boxes.append(dict(id=len(boxes), image_id=i, category_id=label, bbox=[x, y, SIDE // 2, SIDE // 2],
                                  area=SIDE**2 / 4, iscrowd=0))
        (root / 'annotations').mkdir(parents=True, exist_ok=True)
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(dict(
            images=images, annotations=boxes, categories=[dict(id=i, name=name) for i, name in enumerate(names)])))
    return root


def cityscapes_folder(root: Path, number: int = 4) -> Path:
    """Cityscapes: what is bright belongs to the class of the garment."""
    for split in ('train', 'val'):
        for i in range(number):
            image = image_of(4 * i)
            labels = np.kron(fashion(4, 4 * i)[1].numpy().reshape(2, 2), np.ones((SIDE // 2, SIDE // 2)))
            labels = np.where(image[..., 0] > 40, labels, 10).astype(np.uint8)
            mmcv.imwrite(image, str(root / 'leftImg8bit' / split / f'{i}_leftImg8bit.png'))
            mmcv.imwrite(labels, str(root / 'gtFine' / split / f'{i}_gtFine_labelTrainIds.png'))
    return root
