"""Scores and statistics over two real processes that see different images."""
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from mmdyrep.dynamics import METRICS, Calibration, Inputs, Moment, build_metric, inputs
from tests.images import fashion
from tests.test_dynamics.small_network import SmallNetwork

NAMES = list(SmallNetwork.behind)


def measure(rank: int):
    """Scores and statistics that one rank's images give; rank 1 sees no gradient of conv2 in its second step."""
    net, saliency = SmallNetwork().double(), METRICS['snip']()
    for step in range(2):
        net.zero_grad()
        net.loss(*fashion(8, start=100 * rank + 8 * step, dtype=torch.float64)).backward()
        if rank == 1 and step == 1:
            net.conv2.weight.grad = None
        saliency.observe(net.ops())
    batches = [fashion(8, start=100 * rank, dtype=torch.float64)[0]]
    scores = saliency.scores(NAMES, Moment(0, 0))
    return scores, saliency.counts, Calibration(net, net, batches)([net.bn1, net.bn4]), second_order(rank), kept(rank)


def kept(rank: int):
    """Ops whose inputs are kept: those of the second rank, twice as many, would be too much."""
    net, batch = SmallNetwork().double(), fashion(8 * (1 + rank), dtype=torch.float64)[0]
    shared = Inputs(Calibration(net, net, [batch] * 8), net)
    # conv2 has an input of 6 x 14 x 14, conv4 one of 8 x 7 x 7
    with patch.object(inputs, 'FREE', 8 * 8 * 12 * (6 * 196 + 8 * 49)):
        shared.collect(['conv4', 'conv2'])
    return list(shared._kept)


def second_order(rank: int):
    """GraSP of one rank's two batches, one of them smaller; norms that are synchronized over ranks can't do it."""
    net = nn.SyncBatchNorm.convert_sync_batchnorm(SmallNetwork()).double()
    grasp = build_metric('grasp')
    kept = [fashion(8 - 4 * step, start=100 * rank + 8 * step, dtype=torch.float64) for step in range(2)]
    grasp.measure(net, lambda batch: net.loss(*batch), kept[:1 + rank], net.ops())
    assert type(net.bn1) is nn.SyncBatchNorm
    return grasp.scores(NAMES, Moment(0, 0))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def work(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))
    path = Path(folder, f'{rank}.pth')
    torch.save(measure(rank), path.with_suffix('.part'))
    path.with_suffix('.part').rename(path)
    deadline = time.monotonic() + 60
    while not Path(folder, f'{1 - rank}.pth').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    # gloo's own teardown waits for ever now and then when the peer has closed its end first
    os._exit(0)


def test_ranks_agree_on_the_mean_over_all_of_them(tmp_path):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip('needs gloo')
    alone = [measure(rank) for rank in range(2)]
    mp.spawn(work, (str(tmp_path), free_port()), nprocs=2)
    together = [torch.load(tmp_path / f'{rank}.pth', weights_only=False) for rank in range(2)]
    assert together[0][0] == together[1][0]
    for name in NAMES:
        counts = [counts[name] for _, counts, *_ in alone]
        wanted = sum(scores[name] * count for (scores, *_), count in zip(alone, counts)) / sum(counts)
        assert together[0][0][name] == pytest.approx(wanted, rel=1e-12)
        # the second rank has two batches, each counts once
        wanted = (alone[0][3][name] + 2 * alone[1][3][name]) / 3
        assert together[0][3][name] == together[1][3][name] == pytest.approx(wanted, rel=1e-9)
    assert [found[4] for found in alone] == [['conv4', 'conv2'], ['conv4']]
    assert [found[4] for found in together] == [['conv4'], ['conv4']]
    for place in range(2):
        for part in range(2):
            wanted = (alone[0][2][place][part] + alone[1][2][place][part]) / 2
            for _, _, statistics, *_ in together:
                torch.testing.assert_close(statistics[place][part], wanted)
