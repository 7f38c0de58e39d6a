"""MACs and parameters of a config's model, op by op: plain next to augmented."""
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table
from torch import nn

from mmdyrep.dynamics import macs
from mmdyrep.engine.report import human
from mmdyrep.fileio import PathLike, read_checkpoint, read_json
from mmdyrep.models import DyRepBackbone
from mmdyrep.models.building import build_model
from mmdyrep.models.probing import input_shapes, zeros
from mmdyrep.reparam import surgery
from mmdyrep.reparam.structure import root_of

from .uncounted import uncounted

COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
MOST_NOTES = 8


class Form(NamedTuple):
    """Counts of a model with one structure; the keys of the ops are names from the model's root."""

    macs: Dict[str, int]
    parameters: Dict[str, int]
    op_macs: Dict[str, int]
    op_parameters: Dict[str, int]
    uncounted: List[str]


class Complexity(NamedTuple):
    """A model counted with its blocks and without; ``augmented`` is None if it has none."""

    shape: Tuple[int, int, int]
    shape_from: str
    plain: Form
    augmented: Optional[Form]
    structure: Dict[str, List[str]]  # branches by name from the model's root

    @property
    def form(self) -> Form:
        """What is trained: the augmented form, else the plain one."""
        return self.augmented or self.plain


def complexity(cfg: Config, structure: Optional[PathLike] = None, shape: Optional[Sequence[int]] = None) -> Complexity:
    """Count the model of a config, its blocks included, and its plain form.

    Args:
        cfg (Config): Of a run, with or without ``DyRepBackbone``.
        structure (str, optional): JSON of a structure, or a checkpoint. Defaults to what the config brings.
        shape (Sequence[int], optional): (H, W) or (C, H, W) to count at. Defaults to the backbone's
            ``input_shape``, else the size that the training pipeline crops to, else 224x224.

    Returns:
        Complexity: Of the backbone and, where its forward takes a tensor alone (classifiers), of the model.

    Raises:
        ValueError: If the config has no model, or the structure does not fit it.
    """
    if not cfg.get('model'):
        raise ValueError(f'{cfg.filename or "the config"} has no model')
    model = build_model(cfg)
    prefix, backbone = _backbone_of(model)
    if structure is not None:
        backbone = _take_structure(backbone, prefix, structure)
    shape, source = _shape(cfg, backbone, shape)
    ops: Dict[str, List[str]] = {}
    augmented = None
    if isinstance(backbone, DyRepBackbone) and backbone.structure['ops']:
        ops = backbone.structure['ops']
        augmented = _count(model, backbone, prefix, shape)
        backbone.load_structure({'version': 1, 'ops': {}})
    return Complexity(shape, source, _count(model, backbone, prefix, shape), augmented,
                      {prefix + name: branches for name, branches in ops.items()})


def _backbone_of(model: nn.Module) -> Tuple[str, nn.Module]:
    for name, module in model.named_modules():
        if isinstance(module, DyRepBackbone):
            return f'{name}.' if name else '', module
    backbone = getattr(model, 'backbone', None)
    return ('backbone.', backbone) if isinstance(backbone, nn.Module) else ('', model)


def _take_structure(backbone: nn.Module, prefix: str, path: PathLike) -> nn.Module:
    if not isinstance(backbone, DyRepBackbone):
        # the module itself, changed in place
        backbone = DyRepBackbone(backbone)
    if Path(path).suffix == '.json':
        backbone.load_structure(read_json(path))
        return backbone
    state = read_checkpoint(path)['state_dict']
    backbone.match_structure(state, prefix if any(key.startswith(prefix) for key in state) else '')
    return backbone


def _shape(cfg: Config, backbone: nn.Module, wanted: Optional[Sequence[int]]) -> Tuple[Tuple[int, int, int], str]:
    if wanted is not None and (len(wanted) not in (2, 3) or min(wanted) < 1):
        raise ValueError(f'the shape to count at is H W or C H W, got {tuple(wanted)}')
    asked = getattr(backbone, 'input_shape', None) if isinstance(backbone, DyRepBackbone) else None
    found = [(wanted, 'as asked for'), (asked, 'the input_shape of the backbone'),
             (crop_size(cfg), 'what the training pipeline crops to'),
             ((224, 224), 'the usual one, as nothing else is known')]
    size, source = next((size, source) for size, source in found if size is not None)
    return input_shapes(backbone, tuple(size))[0], source


def crop_size(cfg: Config) -> Optional[Tuple[int, int]]:
    """Height and width of a training image, if the pipeline ends in a crop of fixed size."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    for step in reversed(dataset.get('pipeline') or []):
        size = step.get('crop_size', step.get('scale'))
        if str(step.get('type')).endswith('Crop') and step.get('crop_type', 'absolute') == 'absolute' and size:
            return (size, size) if isinstance(size, int) else tuple(size)
    return None


def _count(model: nn.Module, backbone: nn.Module, prefix: str, shape: Tuple[int, int, int]) -> Form:
    x = zeros(backbone, shape)
    whole = model is backbone or _takes_tensor(model)
    counted = macs.count(model, x, **_mode(model)) if whole else macs.count(backbone, x)
    start = '' if whole else prefix
    op_macs: Dict[str, int] = {}
    roots = {prefix + op for op in surgery.outer_blocks(backbone)}
    for name, value in counted.by_name.items():
        op = root_of(start + name, roots)
        op_macs[op] = op_macs.get(op, 0) + value
    of_backbone = sum(value for name, value in op_macs.items() if name.startswith(prefix))
    totals = {'backbone': of_backbone, **({'model': counted.total} if whole else {})}
    parameters = {'backbone': macs.parameters(backbone), 'model': macs.parameters(model)}
    op_parameters = {name: macs.parameters(model.get_submodule(name)) for name in op_macs}
    root = model if whole else backbone
    return Form(totals, parameters, op_macs, op_parameters, _blind_spots(root, x, start))


@torch.no_grad()
def _blind_spots(root: nn.Module, x: torch.Tensor, start: str) -> List[str]:
    root.eval()
    return uncounted(root, lambda: root(x, **_mode(root)), COUNTED, start)


def _takes_tensor(model: nn.Module) -> bool:
    return any(kind.__name__ == 'BaseClassifier' for kind in type(model).__mro__)


def _mode(model: nn.Module) -> Dict[str, str]:
    return {'mode': 'tensor'} if _takes_tensor(model) else {}


def as_json(found: Complexity) -> Dict[str, Any]:
    """What the tool writes for other programs."""
    forms = {'plain': found.plain, **({'augmented': found.augmented} if found.augmented else {})}
    ops = [{'name': name, 'branches': found.structure.get(name, []),
            'macs': {kind: form.op_macs.get(name, 0) for kind, form in forms.items()},
            'parameters': {kind: form.op_parameters.get(name, 0) for kind, form in forms.items()}}
           for name in found.plain.op_macs]
    return {'version': 1, 'shape': list(found.shape), 'ops': ops, 'structure': found.structure,
            'macs': {kind: form.macs for kind, form in forms.items()},
            'parameters': {kind: form.parameters for kind, form in forms.items()},
            'uncounted': found.form.uncounted}


def branches_text(op: str, structure: Dict[str, List[str]]) -> str:
    """Branches of an op, those of a nested one in brackets: ``kxk, 1x1_kxk(kxk, 1x1_avg)``."""
    def one(branch: str) -> str:
        nested = branches_text(f'{op}.branches.{branch}.conv', structure)
        return f'{branch}({nested})' if nested else branch
    return ', '.join(one(branch) for branch in structure.get(op, ()))


def print_table(found: Complexity, console: Optional[Console] = None) -> None:
    """Print the counts as a table with a row per op, and what they cover."""
    console = console or Console(width=None if Console().is_terminal else 140)
    forms = [found.plain] + ([found.augmented] if found.augmented else [])
    table = Table(title=f'Complexity at {"x".join(map(str, found.shape))}', title_justify='left')
    table.add_column('op', overflow='fold')
    for kind in ('plain', 'augmented')[:len(forms)]:
        for what in ('MACs', 'parameters'):
            table.add_column(f'{what}\n{kind}', justify='right', no_wrap=True)
    if found.augmented:
        table.add_column('branches', overflow='fold')

    def row(name: str, values: Sequence[Optional[int]], branches: str = '', **style: Any) -> None:
        texts = ['' if value is None else human(value) for value in values]
        table.add_row(name, *texts, *([branches] if found.augmented else []), **style)

    for name in found.plain.op_macs:
        values = [value for form in forms for value in (form.op_macs.get(name, 0), form.op_parameters.get(name, 0))]
        row(name, values, branches_text(name, found.structure))
    part = 'model' if 'model' in found.plain.macs else 'backbone'
    rest = [form.parameters[part] - sum(form.op_parameters.values()) for form in forms]
    row('norms and all else', [value for form in rest for value in (None, form)])
    table.add_section()
    if part == 'model':
        row('backbone', [value for form in forms for value in (form.macs['backbone'], form.parameters['backbone'])])
    row('TOTAL' if part == 'model' else 'TOTAL of the backbone',
        [value for form in forms for value in (form.macs[part], form.parameters[part])], style='bold')
    console.print(table)
    for line in _notes(found, part):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _notes(found: Complexity, part: str) -> List[str]:
    notes = ['Counted: convolutions and linear layers, one multiply-add once. Not counted: norms, activations, '
             f'pooling, sums. Size of the input: {found.shape_from}.']
    if part == 'backbone':
        notes.append(f'MACs of the backbone alone: the rest of the model does not run on an image alone. With it '
                     f'there are {human(found.form.parameters["model"])} parameters.')
    if found.augmented is None:
        notes.append('No op is expanded.')
    if found.form.uncounted:
        lines = found.form.uncounted
        more = f' and {len(lines) - MOST_NOTES} more (--json has all)' if len(lines) > MOST_NOTES else ''
        notes.append(f'Could not be counted: {"; ".join(lines[:MOST_NOTES])}{more}.')
    return notes
