"""A handful of scenes: garments of Fashion-MNIST on a coloured ground, in the layouts of COCO and Cityscapes."""
import json
from pathlib import Path
from typing import Any, Dict, List

import cv2
import numpy as np

from .images import fashion

CLASSES = ('T-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'boot')
SIZE = 96
GROUND = 10  # label of what is no garment


def write_scenes(folder: Path, number: int = 6) -> Path:
    """Write the same scenes of 96x96 pixels with two garments each in both layouts; train and val are equal.

    Args:
        folder (Path): Data root to be, for ``CocoDataset`` and for ``CityscapesDataset``.
        number (int): How many scenes.

    Returns:
        Path: The folder.
    """
    x, labels = fashion(2 * number)
    garments = ((x[:, 0] * 0.353 + 0.286) * 255).round().clamp(0, 255).byte().numpy()
    for part in ('train', 'val'):
        for kind in ('images', 'leftImg8bit', 'gtFine'):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    pictures: List[Dict[str, Any]] = []
    annotations: List[Dict[str, Any]] = []
    for scene in range(number):
        picture = np.full((SIZE, SIZE, 3), draw.integers(0, 120, 3), np.uint8)
        truth = np.full((SIZE, SIZE), GROUND, np.uint8)
        for place in range(2):
            side = int(draw.integers(36, 46))
            left, top = int(place * 48 + draw.integers(0, 48 - side + 1)), int(draw.integers(0, SIZE - side + 1))
            garment = cv2.resize(garments[2 * scene + place], (side, side))
            mask, label = (garment > 40).astype(np.uint8), int(labels[2 * scene + place])
            window = slice(top, top + side), slice(left, left + side)
            picture[window][mask > 0] = garment[mask > 0, None]
            truth[window][mask > 0] = label
            contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            outline = max(contours, key=cv2.contourArea)
            x0, y0, width, height = cv2.boundingRect(outline)
            annotations.append(dict(
                id=len(annotations) + 1, image_id=scene, category_id=label, iscrowd=0, area=float(mask.sum()),
                bbox=[left + x0, top + y0, width, height],
                segmentation=[(outline[:, 0] + [left, top]).astype(float).ravel().tolist()]))
        name = f'scene_{scene}'
        pictures.append(dict(id=scene, file_name=f'{name}.png', width=SIZE, height=SIZE))
        for part in ('train', 'val'):
            cv2.imwrite(str(folder / 'images' / part / f'{name}.png'), picture)
            cv2.imwrite(str(folder / 'leftImg8bit' / part / f'{name}_leftImg8bit.png'), picture)
            cv2.imwrite(str(folder / 'gtFine' / part / f'{name}_gtFine_labelTrainIds.png'), truth)
    (folder / 'instances.json').write_text(json.dumps(dict(
        images=pictures, annotations=annotations,
        categories=[dict(id=label, name=name) for label, name in enumerate(CLASSES)])))
    return folder
