"""A training whose step is compiled ends with the weights of one that is not."""
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
import torch._dynamo

from tests.resuming import dyrep_config
from tests.runs import needs_images
from tests.steps import dyrep_hook, runner_of


def trained(folder: Path, **changes: Any) -> Dict[str, torch.Tensor]:
    cfg = dyrep_config(images=96, hook=dict(dep=None))
    cfg.param_scheduler = []
    cfg.train_cfg.max_epochs = 3
    cfg.merge_from_dict(changes)
    runner = runner_of(cfg, folder)
    runner.train()
    assert sum(len(update['grown']) for update in dyrep_hook(runner).history.updates) == 3
    assert ('train_step' in vars(runner.model)) == ('compile' in changes)
    return runner.model.state_dict()


@needs_images
@pytest.mark.slow
def test_compiled_anew_after_each_change(tmp_path: Path) -> None:
    graphs = []

    @torch._dynamo.register_backend
    def counting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    expected = trained(tmp_path / 'eager')
    found = trained(tmp_path / 'compiled', compile=dict(backend='counting'))
    assert list(found) == list(expected)
    for name, value in found.items():
        assert torch.allclose(value.double(), expected[name].double(), rtol=1e-4, atol=1e-5), name
    assert len(graphs) > 3
