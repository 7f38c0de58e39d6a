"""Make small data sets for three tasks out of the real images of Fashion-MNIST.

``classes`` is a folder of images by class, ``coco`` has COCO's layout (boxes, masks), ``cityscapes`` that of
Cityscapes (label maps). Training scenes are made of training images only, validation scenes of test images.
"""
import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import cv2
import numpy as np
from numpy import ndarray
from rich.progress import track
from scene_rendering import CLASSES, Garment, render

from mmdyrep.fileio import read_json, write_json

FILES = dict(train='train', val='t10k')
# labels of the segmentation: the garments', then this
BACKGROUND = len(CLASSES)
MANIFEST = 'manifest.json'
KNOWN = Path(__file__).with_name('fashion_scenes.sha256.json')
Put = Callable[[str, ndarray], None]
Scenes = Iterator[Tuple[int, ndarray, List[Garment]]]


def read_idx(path: Path) -> ndarray:
    """Read an idx file of bytes.

    Raises:
        ValueError: If it is none, or is cut off.
    """
    content = path.read_bytes()
    shape = np.frombuffer(content, '>u4', content[3] if len(content) > 3 else 0, 4)
    if content[:3] != b'\0\0\x08' or len(content) != 4 + 4 * len(shape) + shape.prod(dtype=np.int64):
        raise ValueError(f'{path} is no idx file of bytes, or not all of it; fetch it again: '
                         'bash tools/get_fashion_mnist.sh')
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def put_classes(scenes: Scenes, split: str, put: Put) -> None:
    """``train/trouser/000012.png``."""
    for number, picture, garments in scenes:
        put(f'{split}/{CLASSES[garments[0].label]}/{number:06d}.png', picture)


def put_coco(scenes: Scenes, split: str, put: Put) -> Dict[str, Any]:
    """``images/train/000012.png``, and the content of ``annotations/instances_train.json``."""
    from pycocotools import mask as rle
    images: List[dict] = []
    annotations: List[dict] = []
    for number, picture, garments in scenes:
        name = f'{number:06d}.png'
        put(f'images/{split}/{name}', picture)
        images.append(dict(id=number + 1, file_name=name, height=picture.shape[0], width=picture.shape[1]))
        for garment in garments:
            code = rle.encode(np.asfortranarray(garment.mask, np.uint8))
            annotations.append(dict(
                id=len(annotations) + 1, image_id=number + 1, category_id=garment.label + 1, iscrowd=0,
                bbox=rle.toBbox(code).tolist(), area=int(rle.area(code)), source=garment.source,
                segmentation=dict(size=code['size'], counts=code['counts'].decode('ascii'))))
    categories = [dict(id=number + 1, name=name, supercategory='garment') for number, name in enumerate(CLASSES)]
    return dict(info=dict(description=f'Scenes of Fashion-MNIST, {split}'), images=images, annotations=annotations,
                categories=categories)


def put_cityscapes(scenes: Scenes, split: str, put: Put) -> None:
    """``leftImg8bit/train/fashion/fashion_000012_000000_leftImg8bit.png`` and its label map below ``gtFine``."""
    for number, picture, garments in scenes:
        labels = np.full(picture.shape[:2], BACKGROUND, np.uint8)
        for garment in garments:
            labels[garment.mask] = garment.label
        name = f'{split}/fashion/fashion_{number:06d}_000000'
        put(f'leftImg8bit/{name}_leftImg8bit.png', picture)
        put(f'gtFine/{name}_gtFine_labelTrainIds.png', labels)


# kind: how it is written, garments of a scene, their height in percent of the scene's
KINDS = dict(
    classes=(put_classes, (1, 1), (50, 95)),
    coco=(put_coco, (2, 6), (20, 50)),
    cityscapes=(put_cityscapes, (2, 6), (20, 60)))


def make(kind: str, out: Path, source: Path, numbers: Dict[str, int], size: int, seed: int) -> Dict[str, Any]:
    """Make a set in a folder beside ``out`` and move it there when it is whole.

    Returns:
        dict: Content of its manifest.
    """
    write, (fewest, most), scale = KINDS[kind]
    making = out.with_name(f'.{out.name}.making')  # of a run that was killed, maybe
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    digests = {}
    for split, number in numbers.items():
        images, labels = (read_idx(source / f'{FILES[split]}-{what}-ubyte') for what in ('images-idx3', 'labels-idx1'))
        digest = hashlib.sha256()

        def put(name: str, picture: ndarray, digest: Any = digest) -> None:
            path = making / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), picture):
                raise OSError(f'{path} could not be written; is the disk full?')
            take(digest, name, picture)

        def scenes(split: str = split, number: int = number, images: ndarray = images,
                   labels: ndarray = labels) -> Scenes:
            for index in track(range(number), f'{kind}/{split}'):
                # a scene depends on nothing but these: more of them leave the first as they are
                rng = np.random.default_rng([seed, list(KINDS).index(kind), list(FILES).index(split), index])
                wanted = int(rng.integers(fewest, most + 1))
                yield (index, *render(rng, images, labels, size, wanted, scale))

        annotations = write(scenes(), split, put)
        if annotations is not None:
            write_json(making / f'annotations/instances_{split}.json', annotations)
            digest.update(json.dumps(annotations, sort_keys=True).encode())
        digests[split] = digest.hexdigest()
    manifest = dict(kind=kind, **numbers, size=size, seed=seed, sha256=digests)
    write_json(making / MANIFEST, manifest)
    making.rename(out)
    return manifest


def take(digest: Any, name: str, picture: ndarray) -> None:
    """Add the pixels of a picture: the bytes of a PNG depend on the version of the library that packs it."""
    digest.update(f'{name} {picture.shape}'.encode())
    digest.update(np.ascontiguousarray(picture).tobytes())


def digests_of(out: Path, manifest: Dict[str, Any]) -> Dict[str, str]:
    """Digests of the files that are there, in the order in which they were made."""
    found = {}
    for split in manifest['sha256']:
        digest = hashlib.sha256()
        paths = [path for path in out.rglob('*.png') if split in path.relative_to(out).parts[:2]]
        # leftImg8bit and gtFine of a scene follow each other
        for path in sorted(paths, key=lambda path: (path.name.split('_')[1:2] or path.name, 'gtFine' in path.parts)):
            picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            take(digest, path.relative_to(out).as_posix(), np.zeros(0) if picture is None else picture)
        annotations = out / f'annotations/instances_{split}.json'
        if annotations.exists():
            digest.update(json.dumps(read_json(annotations), sort_keys=True).encode())
        found[split] = digest.hexdigest()
    return found


def check(out: Path, manifest: Dict[str, Any], read_files: bool) -> str:
    """Compare a set with its manifest, and with what this repository says of a set of these options.

    Returns:
        str: What was found.

    Raises:
        ValueError: If a file is another, or the set is another than on other machines.
    """
    for split, digest in (digests_of(out, manifest) if read_files else {}).items():
        if digest != manifest['sha256'][split]:
            raise ValueError(f'{out}: files of {split} are not those that were made. Remove it and make it anew')
    known = [entry for entry in read_json(KNOWN)
             if {**entry, 'sha256': 0} == {**manifest, 'sha256': 0}]
    for entry in known:
        if entry != manifest:
            raise ValueError(f'{out}: checksums {manifest["sha256"]} are not those of {KNOWN.name}, {entry["sha256"]}. '
                             'Is the source all of Fashion-MNIST, and were numpy and opencv of the tested versions?')
    return f'as in {KNOWN.name}' if known else 'no checksums known for these options'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Make data sets of scenes out of Fashion-MNIST')
    parser.add_argument('--source', type=Path, default=Path('data/fashion-mnist'), help='folder of its idx files')
    parser.add_argument('--out', type=Path, default=Path('data/fashion-scenes'), help='folder to put the sets into')
    parser.add_argument('--kinds', nargs='+', choices=list(KINDS), default=list(KINDS))
    parser.add_argument('--train', type=int, default=2000, help='training scenes')
    parser.add_argument('--val', type=int, default=400, help='validation scenes')
    parser.add_argument('--size', type=int, default=128, help='height and width of a scene')
    parser.add_argument('--per-scene', type=int, default=5, metavar='N',
                        help='how many times as many single garments (kind classes), of half the size')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--check', action='store_true', help='read the files of sets that are there and compare them')
    return parser.parse_args()


def main() -> None:
    from mmdyrep.cli import fail_readably
    args = parse_args()
    with fail_readably():
        if min(args.train, args.val, args.per_scene) < 1 or args.size < 64 or args.seed < 0:
            raise ValueError('numbers of scenes must be at least 1, --size at least 64, --seed at least 0')
        for kind in args.kinds:
            times, part = (args.per_scene, 2) if kind == 'classes' else (1, 1)
            wanted = dict(kind=kind, train=args.train * times, val=args.val * times, size=args.size // part,
                          seed=args.seed)
            out = args.out / kind
            if not out.exists() and not args.check:
                numbers = {split: wanted[split] for split in FILES}
                manifest = make(kind, out, args.source, numbers, wanted['size'], args.seed)
            else:
                manifest = read_json(out / MANIFEST)
            if {**manifest, 'sha256': 0} != {**wanted, 'sha256': 0}:
                raise ValueError(f'{out} is there and was made with other options ({manifest}); remove it or give '
                                 'another --out')
            state = check(out, manifest, args.check)
            print(f'{out}: {manifest["train"]} + {manifest["val"]}, {state}')
            for split, digest in manifest['sha256'].items():
                print(f'  {split} sha256 {digest}')


if __name__ == '__main__':
    main()
