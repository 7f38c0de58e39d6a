"""Work dirs of made-up runs, as the logger and DyRepHook leave them."""
import json

from mmdyrep.fileio import write_json


def scalars(work_dir, timestamp, epochs, top1, iters=10, every=5):
    """Scalars of the epochs of one start of a run; ``top1`` maps an epoch to its accuracy."""
    rows = []
    for epoch in epochs:
        rows += [{'lr': 0.1, 'loss': 3.0 / epoch + it / 100, 'epoch': epoch, 'iter': it, 'time': 0.1,
                  'step': (epoch - 1) * iters + it} for it in range(every, iters + 1, every)]
        rows.append({'dyrep/macs': 100, 'step': epoch})
        rows.append({'accuracy/top1': top1(epoch), 'accuracy/top5': 99.0, 'data_time': 0.1, 'time': 0.1, 'step': epoch})
    folder = work_dir / timestamp / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)) + '\n')


def history(work_dir, updates, macs=150e6, iters=10):
    """History of a run: an update is (epoch, {op: branches grown}, {op: branches cut})."""
    entries = [{'epoch': epoch, 'iter': epoch * iters, 'grown': [{'op': op, 'branches': branches, 'score': 1.0}
                                                                 for op, branches in grown.items()],
                'cut': [{'op': op, 'branches': branches, 'importance': {name: 0.1 for name in [*branches, 'kept']}}
                        for op, branches in cut.items()]} for epoch, grown, cut in updates]
    write_json(work_dir / 'dyrep' / 'history.json', {
        'version': 1, 'settings': {'by_epoch': True, 'input_shape': [1, 28, 28]}, 'updates': entries,
        'average': {'macs': {'backbone': macs - 1e6, 'model': macs}}})
