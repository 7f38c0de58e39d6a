"""Train and eval modes, set by hand among them, while modules are replaced."""
from contextlib import contextmanager
from typing import Iterator

from mmengine.runner import Runner

from mmdyrep.models import DyRepBackbone
from mmdyrep.models.finding import unwrapped
from mmdyrep.reparam import blocks_of, depth_of


@contextmanager
def modes_kept(runner: Runner, backbone: DyRepBackbone) -> Iterator[None]:
    """Give modules their modes back by name at the end; norms in a block have that of the norm behind the op.

    Wrapping the model anew makes new norms, and a backbone's ``train`` resets what hooks have set by hand.
    """
    modes = {name: module.training for name, module in unwrapped(runner.model).named_modules()}
    yield
    for name, module in unwrapped(runner.model).named_modules():
        module.training = modes.get(name, module.training)
    for name, block in blocks_of(backbone).items():
        follower = backbone.norm_behind(name) if not depth_of(name) else None
        if follower is not None:
            block.follow(follower)
