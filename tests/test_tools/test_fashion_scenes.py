"""The converter that makes data sets of scenes, on the real images."""
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.runs import DATA, ROOT, needs_images

pytestmark = needs_images
TOOL = ROOT / 'tools' / 'dataset_converters' / 'fashion_scenes.py'
KINDS = ('classes', 'coco', 'cityscapes')


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def convert(out: Path, *arguments: object, source: Path = DATA) -> Done:
    """The converter's main in this process: there is nothing in it that another process would do differently."""
    out_text, err_text = io.StringIO(), io.StringIO()
    sys.path.insert(0, str(TOOL.parent))
    sys.argv, before = [str(TOOL), '--source', str(source), '--out', str(out), *map(str, arguments)], sys.argv
    try:
        with redirect_stdout(out_text), redirect_stderr(err_text):
            runpy.run_path(str(TOOL), run_name='__main__')
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.path.remove(str(TOOL.parent))
        sys.argv = before
    return Done(code, out_text.getvalue(), err_text.getvalue())


def files(folder: Path) -> dict:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def sets(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('sets') / 'out'
    done = convert(out, '--train', 12, '--val', 6)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def garments(image: int, source: str) -> np.ndarray:
    """An image of Fashion-MNIST, read here and not by the converter."""
    content = np.fromfile(DATA / f'{source}-images-idx3-ubyte', np.uint8)[16:]
    return content.reshape(-1, 28, 28)[image]


def test_same_bytes_on_every_run_and_more_scenes_leave_the_first_as_they_are(sets, tmp_path):
    assert convert(tmp_path / 'a', '--train', 12, '--val', 6).returncode == 0
    first = files(sets)
    assert files(tmp_path / 'a') == first
    assert convert(tmp_path / 'b', '--train', 14, '--val', 6).returncode == 0
    more = files(tmp_path / 'b')
    kept = [name for name in first if name.endswith('.png')]
    assert len(kept) == 5 * 18 + 18 + 2 * 18 and all(more[name] == first[name] for name in kept)
    assert convert(tmp_path / 'c', '--train', 12, '--val', 6, '--seed', 1).returncode == 0
    other = files(tmp_path / 'c')
    pictures = [name for name in other if '/images/' in name or name.endswith('leftImg8bit.png')]
    assert len(pictures) == 36 and not any(other[name] == first[name] for name in pictures)


@pytest.mark.parametrize('split, source', [('train', 'train'), ('val', 't10k')])
def test_boxes_enclose_masks_tightly_and_pycocotools_reads_them(sets, split, source):
    coco = COCO(str(sets / f'coco/annotations/instances_{split}.json'))
    labels = np.fromfile(DATA / f'{source}-labels-idx1-ubyte', np.uint8)[8:]
    assert len(coco.imgs) == (12 if split == 'train' else 6) and len(coco.anns) > 2 * len(coco.imgs)
    for image in coco.imgs.values():
        picture = cv2.imread(str(sets / f'coco/images/{split}' / image['file_name']))
        assert picture.shape == (image['height'], image['width'], 3) == (128, 128, 3)
        covered = np.zeros((128, 128), int)
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            mask = coco.annToMask(annotation)
            covered += mask
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            assert annotation['bbox'] == box and annotation['area'] == mask.sum() > 0
            # by the files of Fashion-MNIST, the class is that of the source; only of this split
            assert annotation['category_id'] == labels[annotation['source']] + 1
        assert covered.max() == 1, 'a pixel shows one garment'


def test_masks_cover_the_garments_and_not_the_background(sets):
    """A garment's outline and its source image agree where nothing is in front of it."""
    coco = COCO(str(sets / 'coco/annotations/instances_train.json'))
    agreements = []
    for annotation in coco.anns.values():
        left, top, width, height = map(int, annotation['bbox'])
        mask = coco.annToMask(annotation)[top:top + height, left:left + width]
        grey = garments(annotation['source'], 'train')
        rows, columns = np.flatnonzero((grey > 20).any(1)), np.flatnonzero((grey > 20).any(0))
        grey = grey[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        wanted = cv2.resize((grey > 20).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        overlap = max((mask & side).sum() / (mask | side).sum() for side in (wanted, wanted[:, ::-1]))
        agreements.append(overlap)
    # some lie behind others
    assert np.median(agreements) > 0.85


@pytest.mark.parametrize('split', ['train', 'val'])
def test_label_maps_have_the_pictures_size_and_ids(sets, split):
    pictures = sorted((sets / f'cityscapes/leftImg8bit/{split}/fashion').iterdir())
    seen = set()
    for picture in pictures:
        name = picture.name.replace('_leftImg8bit.png', '_gtFine_labelTrainIds.png')
        labels = cv2.imread(str(sets / f'cityscapes/gtFine/{split}/fashion' / name), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8 and labels.shape == cv2.imread(str(picture)).shape[:2] == (128, 128)
        assert labels.max() == 10 and 1 < len(np.unique(labels)) <= 7
        seen |= set(np.unique(labels))
    assert seen <= set(range(11)) and len(seen) > 5
    assert len(pictures) == (12 if split == 'train' else 6)


def test_folder_of_classes_is_read_by_mmpretrain(sets):
    from mmpretrain.datasets import CustomDataset
    data = CustomDataset(data_root=str(sets / 'classes'), data_prefix='train', pipeline=[])
    assert len(data) == 60
    assert {cv2.imread(data[i]['img_path']).shape for i in range(60)} == {(64, 64, 3)}


def test_a_killed_run_leaves_no_set_that_counts_as_whole(tmp_path):
    """Killed at the fifth picture of the third set, and asked again."""
    code = ('import os, signal, sys\nsys.argv = sys.argv[1:]\nsys.path.insert(0, os.path.dirname(sys.argv[0]))\n'
            'import cv2, fashion_scenes\nwrite, count = cv2.imwrite, iter(range(10**9))\n'
            'def dying(*args):\n    if next(count) == 40:\n        os.kill(os.getpid(), signal.SIGKILL)\n'
            '    return write(*args)\ncv2.imwrite = dying\nfashion_scenes.main()')
    arguments = ['--train', '6', '--val', '3', '--per-scene', '3', '--source', str(DATA)]
    done = subprocess.run([sys.executable, '-c', code, str(TOOL), '--out', str(tmp_path / 'killed'), *arguments],
                          capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == -9, done.stderr
    assert sorted(path.name for path in (tmp_path / 'killed').iterdir()) == ['.cityscapes.making', 'classes', 'coco']
    assert 'cityscapes' in convert(tmp_path / 'killed', *arguments, '--check').stderr
    assert convert(tmp_path / 'killed', *arguments).returncode == 0
    assert convert(tmp_path / 'whole', *arguments).returncode == 0
    assert files(tmp_path / 'killed') == files(tmp_path / 'whole')


def test_check_sees_one_changed_pixel_a_missing_file_and_other_annotations(sets, tmp_path):
    arguments = ['--train', 12, '--val', 6, '--check']
    assert convert(sets, *arguments).returncode == 0
    changes = []
    for number, kind in enumerate(KINDS):
        out = tmp_path / str(number)
        shutil.copytree(sets, out)
        path = next((out / kind).rglob('val/**/*.png'))
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        picture.flat[100] ^= 1
        cv2.imwrite(str(path), picture)
        changes.append((out, kind))
    shutil.copytree(sets, tmp_path / 'missing')
    next((tmp_path / 'missing/cityscapes/gtFine').rglob('*.png')).unlink()
    shutil.copytree(sets, tmp_path / 'json')
    path = tmp_path / 'json/coco/annotations/instances_val.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['bbox'][0] += 1
    path.write_text(json.dumps(content))
    for out, kind in [*changes, (tmp_path / 'missing', 'cityscapes'), (tmp_path / 'json', 'coco')]:
        done = convert(out, *arguments)
        assert done.returncode == 1 and f'{out / kind}: files of' in done.stderr and 'Traceback' not in done.stderr


def test_other_options_and_broken_sources_are_refused(sets, tmp_path):
    done = convert(sets, '--train', 13, '--val', 6)
    assert done.returncode == 1 and 'other options' in done.stderr
    assert convert(tmp_path / 'out', '--train', 0).returncode == 1
    for name in ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'):
        (tmp_path / name).write_bytes((DATA / name).read_bytes()[:-1])
    done = convert(tmp_path / 'out', '--train', 2, '--val', 2, source=tmp_path)
    assert done.returncode == 1 and 'train-images-idx3-ubyte is no idx file' in done.stderr
    assert not (tmp_path / 'out' / 'classes').exists()


def test_checksums_of_the_defaults_are_those_of_this_repository(tmp_path):
    """Made anew; the checksums in the repository were made by another process, the arithmetic is on whole numbers."""
    known = json.loads(TOOL.with_name('fashion_scenes.sha256.json').read_text())
    assert [entry['kind'] for entry in known] == list(KINDS)
    done = convert(tmp_path, '--kinds', 'coco')
    assert done.returncode == 0 and 'as in fashion_scenes.sha256.json' in done.stdout, done.stdout + done.stderr
    manifest = json.loads((tmp_path / 'coco' / 'manifest.json').read_text())
    manifest['sha256']['val'] = '0' * 64
    (tmp_path / 'coco' / 'manifest.json').write_text(json.dumps(manifest))
    assert 'are not those of' in convert(tmp_path, '--kinds', 'coco').stderr
