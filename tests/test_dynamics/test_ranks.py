"""Scores and statistics over two real processes that see different images."""
import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmdyrep.dynamics import METRICS, Calibration, Moment
from tests.images import fashion
from tests.processes import free_port
from tests.test_dynamics.small_network import SmallNetwork

NAMES = list(SmallNetwork.behind)
BATCHES = (1, 3)


def measure(rank: int):
    """Scores and statistics that one rank's images give; rank 1 sees no gradient of conv2 in its second step."""
    net, saliency = SmallNetwork().double(), METRICS['snip']()
    for step in range(2):
        net.zero_grad()
        net.loss(*fashion(8, start=100 * rank + 8 * step, dtype=torch.float64)).backward()
        if rank == 1 and step == 1:
            net.conv2.weight.grad = None
        saliency.observe(net.ops())
    batches = [fashion(8, start=100 * rank + 8 * i, dtype=torch.float64)[0] for i in range(BATCHES[rank])]
    scores = saliency.scores(NAMES, Moment(0, 0))
    return scores, saliency.counts, Calibration(net, net, batches)([net.bn1, net.bn4])


def work(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    # not a file:// store: destroying that sometimes hangs when the other process has gone first
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))
    torch.save(measure(rank), os.path.join(folder, f'{rank}.pth'))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree_on_the_mean_over_all_of_them(tmp_path):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip('needs gloo')
    alone = [measure(rank) for rank in range(2)]
    mp.spawn(work, (str(tmp_path), free_port()), nprocs=2)
    together = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    assert together[0][0] == together[1][0]
    for name in NAMES:
        counts = [counts[name] for _, counts, _ in alone]
        wanted = sum(scores[name] * count for (scores, _, _), count in zip(alone, counts)) / sum(counts)
        assert together[0][0][name] == pytest.approx(wanted, rel=1e-12)
    for place in range(2):
        for part in range(2):
            wanted = sum(count * alone[rank][2][place][part] for rank, count in enumerate(BATCHES)) / sum(BATCHES)
            for _, _, statistics in together:
                torch.testing.assert_close(statistics[place][part], wanted)
