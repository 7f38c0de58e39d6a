"""What scores and updates cost, in iterations of the plain network."""
import time
from functools import partial
from typing import Any, Dict, List

import torch
from torch import Tensor

from mmdyrep.dynamics import Key, Moment, build_metric
from mmdyrep.engine.report import counted
from mmdyrep.engine.scoring import ops_of
from mmdyrep.engine.updating import Policy, Round, update
from mmdyrep.models import DyRepBackbone

from .cases import Options
from .measuring import Run, Times, interleaved, peak_bytes, synchronize
from .networks import Iteration, images, kind_of, stem, trainable

BATCHES = 20


def _grown(name: str, number: int, online: bool = False) -> DyRepBackbone:
    """With as many blocks, and room for others."""
    plain = kind_of(name).backbone()
    net = DyRepBackbone(plain, online=online, exclude=stem(plain), max_depth=1)
    for op in net.candidates()[1::3][:number]:
        net.expand(op)
    return trainable(net)


class Update:
    """An update of a network that has been trained for an iteration, with as many batches as DyRepHook keeps.

    Args:
        net (DyRepBackbone): The last of its candidates grow, as far apart as can be.
        x (Tensor): Images of each batch.
        options (Options): Device, precision.
        number (int): Ops that grow.
    """

    def __init__(self, net: DyRepBackbone, x: Tensor, options: Options, number: int) -> None:
        self.iteration, self.options = Iteration(net, x, options), options
        self.iteration()
        names = net.candidates()[::-1]
        self.scores: Dict[Key, float] = {
            op: float(-rank) for rank, op in enumerate(names[::max(1, len(names) // number)])}
        self.policy = Policy(number, None)
        self.round = Round(net, net, self.run, [x] * (2 if options.quick else BATCHES), x.shape[1:])

    def run(self, x: Tensor) -> None:
        with torch.autocast(self.options.device, enabled=self.options.amp):
            self.round.model(x)

    def __call__(self) -> Dict[str, Any]:
        return update(self.round, self.scores, self.policy, Moment(0, 0))


def measured(name: str, options: Options) -> List[Dict[str, Any]]:
    """Rows: an iteration, scores of all ops, updates that grow one op (the last) and four; each update once."""
    device, x = torch.device(options.device), images(name, options)
    plain = Iteration(_grown(name, 0), x, options)
    plain()
    ops = ops_of(plain.model)
    calls: Dict[str, Run] = {'iteration': plain}
    for metric in ('synflow', 'snip_bn'):
        calls[f'scores, {metric}'] = partial(build_metric(metric).observe, ops)
    times = interleaved(calls, options.rounds, device)
    own = times['iteration'].seconds
    peaks = {'iteration': peak_bytes(plain, plain.standing, device)}
    for number, online in ((1, False), (4, False), (1, True)):
        row = f'update, {counted(number, "op")}' + (', online with 4 blocks' if online else '')
        run = Update(_grown(name, 4 * online, online), x, options, number)
        synchronize(device)
        begin = time.perf_counter()
        grown = len(run()['grown'])
        synchronize(device)
        seconds = time.perf_counter() - begin
        if grown != number:
            raise RuntimeError(f'{name}: {grown} ops have grown, not {number}')
        times[row] = Times(seconds, seconds / own)
        if not online and not options.quick:
            again = Update(_grown(name, 0), x, options, number)
            peaks[row] = peak_bytes(again, again.iteration.standing, device)
    return [{'network': name, 'name': row, 'seconds': value.seconds, 'time_ratio': value.ratio,
             'peak_bytes': peaks.get(row), 'memory_ratio': peaks[row] / peaks['iteration'] if row in peaks else None}
            for row, value in times.items()]
