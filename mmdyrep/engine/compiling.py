"""mmengine's ``compile`` option: the compiled step follows the structure."""
import torch._dynamo
from mmengine.runner import Runner


def compile_anew(runner: Runner) -> None:
    """Compile the training step as the runner did, after the model has changed; call it after ``wrap_anew``.

    The code compiled before holds the old modules and parameters: it is dropped, of all models in the process, since
    its cache (8 versions of a function in PyTorch 2.1) would be full after some updates.
    """
    if not runner.cfg.get('compile'):
        return
    vars(runner.model).pop('train_step', None)
    torch._dynamo.reset()
    runner._maybe_compile('train_step')
