"""The registry's face of the surgery: a backbone whose convolutions can grow and shrink."""
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep import reparam
from mmdyrep.fileio import read_json
from mmdyrep.reparam import Block, StructureError, eligible, structure as structures, surgery

from . import loading, starting, upkeep
from .norms import norm_maker
from .probing import example_of, probe_backbone, probe_with
from .reasons import reasons_of, require_branches, require_op
from .settings import Settings, build, check_inner, checked, static_structure
from .wrapping import Extension, extended


@MODELS.register_module()
class DyRepBackbone(Extension):
    """Make the convolutions of a backbone re-parameterizable (Section 4 of the paper).

    What is returned is the backbone itself, its class extended: keys of the state dict, attributes,
    ``init_weights`` and ``train`` are those of the plain one. A checkpoint with blocks brings its structure;
    a plain one makes an expanded model plain again, unless ``static`` or ``structure`` pins the structure.

    Args:
        backbone (dict or nn.Module): Config of a registered backbone, built in the current scope, or a
            module, which is changed in place.
        space (str or Sequence[str]): Operation space of Table 1, 'repvgg', 'dbb' or 'dyrep', or branch names.
        static (bool): Expand every eligible op at construction, with gamma 1 and scale 1. Defaults to False.
        structure (dict or str, optional): Structure, or the path of its JSON file, to start from.
        gamma_init (float): First scale of a new branch's last batch norm. Defaults to 0.01.
        max_depth (int): How many blocks a new branch may lie in. Defaults to 2.
        norm_cfg (dict, optional): Norm of the branches. Defaults to class, eps, momentum of the one behind the op.
        exclude (Sequence[str]): Names, or leading parts of names, of convolutions to leave alone.
        input_shape (tuple, optional): (H, W) or (C, H, W) of the probe that finds the batch norms, and of MACs.
        pretrained (str, optional): As ``init_cfg=dict(type='Pretrained', checkpoint=...)``; a ``backbone.``
            prefix of its keys is found.
        init_cfg (dict, optional): Replaces that of the inner backbone.
        keep_norm (bool): False: the norm behind an op is left out while this is a block of ``static`` or
            ``structure``, as DBB and RepVGG have it; the fused network has it. Defaults to True.
        online (bool): The statistics of blocks are fixed between updates, which calibrate them: blocks run as one
            convolution in training, too. Defaults to False, as in the paper.
        branch_init (str or dict): What new branches start from: 'default', as PyTorch draws convolutions, 'normal', as
            the paper's authors do, 'split', parts of the op's own kernel; or dict(type=one of them, settings).

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from mmdyrep import DyRepBackbone
        >>> net = DyRepBackbone(resnet18()).eval()
        >>> before = net(torch.ones(1, 3, 64, 64))
        >>> net.expand('layer1.0.conv1', ['1x1', '1x1_kxk'])
        >>> net.structure['ops']
        {'layer1.0.conv1': ['kxk', '1x1', '1x1_kxk']}
        >>> torch.allclose(net(torch.ones(1, 3, 64, 64)), before, atol=1e-4)
        True
    """

    prefix = 'DyRep'
    _dyrep: Settings

    def __new__(cls, *args, **kwargs):
        """A finished backbone."""
        if hasattr(cls, '_inner_class'):
            return cls.made_again(*args, **kwargs)
        return cls._make(*args, **kwargs)

    @classmethod
    def _make(cls, backbone, space='dyrep', static=False, structure=None, gamma_init=0.01, max_depth=2,
              norm_cfg=None, exclude=(), input_shape=None, pretrained=None, init_cfg=None, keep_norm=True,
              online=False, branch_init='default'):
        settings = checked(space, static, structure, gamma_init, max_depth, norm_cfg, exclude, input_shape, keep_norm,
                           online, branch_init)
        if pretrained is not None and init_cfg is not None:
            raise ValueError('give pretrained or init_cfg, not both')
        if isinstance(structure, (str, os.PathLike)):
            structure = read_json(structure)
        inner = build(backbone)
        if isinstance(inner, DyRepBackbone) or any(isinstance(module, Block) for module in inner.modules()):
            raise ValueError(f'{type(inner).__name__} is wrapped by DyRepBackbone already')
        check_inner(settings, inner)
        inner.__class__ = extended(cls, type(inner))
        inner._dyrep = settings
        if pretrained is not None:
            init_cfg = ConfigDict(type='Pretrained', checkpoint=pretrained)
        if init_cfg is not None:
            inner.init_cfg = init_cfg
        if static:
            structure = static_structure(inner, settings)
        if structure is not None:
            inner.load_structure(structure)
        state = loading.local_state(getattr(inner, 'init_cfg', None), inner)
        if state is not None and loading.looks_augmented(state):
            inner.match_structure(state)
        return inner

    def __init__(self, *args, **kwargs) -> None:
        """Nothing is left to do: `__new__` returns a finished backbone."""

    # ------------------------------------------------------------------ what there is

    @property
    def survey(self) -> reparam.Survey:
        """Ops of the plain backbone that can be expanded, each of them tried on a copy when first asked for."""
        return self._dyrep.survey or self._dyrep.survey_by(probe_backbone, self, self._dyrep.input_shape)

    @property
    def online(self) -> bool:
        """Whether blocks always run as one convolution."""
        return self._dyrep.online

    @property
    def survey_seconds(self) -> float:
        """Seconds that :attr:`survey` took."""
        return self._dyrep.seconds

    def probe_with(self, *args: Any, **kwargs: Any) -> None:
        """Survey the plain backbone with inputs of its forward, where that takes something else than one image.

        Raises:
            ValueError: If there are blocks already.
        """
        if self.structure['ops']:
            raise ValueError('probe_with needs the plain backbone, before any op is expanded')
        self._dyrep.survey_by(probe_with, self, args, kwargs)
        self._dyrep.example = example_of(args, kwargs)

    @property
    def structure(self) -> Dict[str, Any]:
        """``{'version': 1, 'ops': {op: branch names}}``, nested ops as entries of their own, parents first."""
        return reparam.describe(self)

    @property
    def space(self) -> List[str]:
        """Branch names of the operation space, in the order of a block."""
        return list(self._dyrep.space)

    @property
    def settings(self) -> Dict[str, Any]:
        """The settings that the history of a run keeps, as JSON can hold them."""
        return self._dyrep.told

    @property
    def input_shape(self) -> Optional[Tuple[int, ...]]:
        """(H, W) or (C, H, W) that was asked for."""
        return self._dyrep.input_shape

    def candidates(self) -> List[str]:
        """Names of the ops that can be expanded now, in the order of the network."""
        return [name for name, reason in reasons_of(self).items() if not reason]

    def skipped(self) -> Dict[str, str]:
        """Convolutions that can't be expanded now, and why."""
        return {name: reason for name, reason in reasons_of(self).items() if reason}

    def why_none(self) -> str:
        """The reasons of :meth:`skipped` in short, most frequent first."""
        return eligible.in_short(self.skipped()) or 'it has no 2D convolution'

    def norm_behind(self, name: str) -> Optional[_BatchNorm]:
        """Batch norm that reads the output of an op, nested or not; None where the op has a bias instead."""
        return reparam.norm_behind(self, name, self.survey.ops)

    # ------------------------------------------------------------------ Rep and Dep

    def expand(self, name: str, branches: Union[str, Sequence[str], None] = None, *,
               generator: Optional[torch.Generator] = None, measure: Optional[reparam.Measure] = None) -> List[str]:
        """Add branches to an op, output-preserving in eval mode (Rep, Eq. 6); on a block, those that are missing.

        Args:
            name (str): A convolution or a block.
            branches (str or Sequence[str], optional): Defaults to all of the space that fit.
            generator (torch.Generator, optional): Source of the new weights. Defaults to PyTorch's own.
            measure (callable, optional): Statistics on training batches. Defaults to the running ones.

        Returns:
            list[str]: The branches that were added; empty if nothing was missing.

        Raises:
            ValueError: If the op can't be expanded or a branch does not fit; nothing has been changed.
        """
        geometry = require_op(self, name)
        if branches is None:
            branches = reparam.fitting(self._dyrep.space, geometry)
        branches = [branches] if isinstance(branches, str) else list(branches)
        eligible.check_branches(branches, geometry, name)
        depth = structures.depth_of(name, self.survey.ops)
        if depth >= self._dyrep.max_depth:
            raise ValueError(f'{name} lies in {depth} blocks already (max_depth={self._dyrep.max_depth})')
        added = surgery.expand(self, name, branches, self.survey.ops, generator=generator, measure=measure,
                               **self._options())
        self._changed()
        return added

    def remove(self, name: str, branches: Union[str, Sequence[str]], *,
               measure: Optional[reparam.Measure] = None) -> None:
        """Absorb branches into the original, output-preserving in eval mode (Dep, Eq. 10).

        When the last one goes, the op is the plain convolution again.

        Args:
            name (str): A block.
            branches (str or Sequence[str]): Branches of it; ``kxk`` stays.
            measure (callable, optional): Statistics on training batches, for the original's norm.

        Raises:
            ValueError: If there is no such block or branch; nothing has been changed.
        """
        branches = require_branches(self, name, branches)
        surgery.remove(self, name, branches, self.survey.ops, measure)
        self._changed()

    def load_structure(self, structure: Mapping[str, Any]) -> None:
        """Reach a structure by expanding and removing, the function kept.

        Raises:
            StructureError: If it does not fit, with the op's name; nothing has been changed.
        """
        if self._dyrep.deployed and isinstance(structure, Mapping) and structure.get('ops'):
            raise StructureError(f'{type(self).__name__} has been switched to its deploy form, which takes no blocks; '
                                 'build it anew')
        target = structures.check(structure, self, self.survey.ops, self.survey.reasons)
        if target == self.structure['ops']:
            return
        surgery.to_structure(self, target, self.survey.ops, **self._options())
        self._changed()

    def to_plain(self) -> nn.Module:
        """The backbone as configured, fused; this one is left as it is."""
        plain = reparam.fused_copy(self, self.survey.ops if self.structure['ops'] else {})
        upkeep.settle(plain)
        del plain._dyrep
        return plain.unwrap()

    def switch_to_deploy(self) -> None:
        """Fuse every block in place, then do what the inner class does for deployment, if anything."""
        if self.structure['ops']:
            reparam.fold_all(self, self.survey.ops)
            self._changed()
        inherited: Any = getattr(super(), 'switch_to_deploy', None)
        if inherited is not None and not self._dyrep.deployed:
            inherited()
        self._dyrep.deployed = True

    def _options(self) -> Dict[str, Any]:
        settings = self._dyrep
        return dict(gamma=1.0 if settings.static else settings.gamma_init, rescale=not settings.static,
                    make_norm=norm_maker(settings.norm_cfg), start=settings.start)

    def _changed(self) -> None:
        upkeep.changed(self)

    # ------------------------------------------------------------------ what nn.Module and BaseModule do

    def train(self, mode: bool = True) -> 'DyRepBackbone':
        """As the inner class; norms in a block follow the one behind it, frozen statistics included."""
        super().train(mode)
        upkeep.mode_set(self)
        return self

    def __call__(self, *args, **kwargs):
        """As the inner class; refuses to run after a tool has fused norms that blocks need into other convolutions."""
        upkeep.before_call(self)
        return super().__call__(*args, **kwargs)

    def init_weights(self) -> None:
        """As the inner class; then branches start as ``branch_init`` and ``gamma_init`` say (1 for static ones)."""
        starting.init_weights(self, getattr(super(), 'init_weights', None), self._options())
        upkeep.settle(self)

    def match_structure(self, state_dict: Mapping[str, Any], prefix: str = '') -> None:
        """Take the structure that a state dict brings; loading one does this by itself.

        Args:
            state_dict (Mapping): Of the backbone, or of a model around it.
            prefix (str): Of the backbone's keys in it, as ``backbone.``. Defaults to none.

        Raises:
            StructureError: If it does not fit; nothing has been changed.
        """
        keys = [key[len(prefix):] for key in state_dict if key.startswith(prefix)]
        if self.structure['ops'] or loading.looks_augmented(keys):
            self.load_structure(loading.target_structure(self, keys, self.survey.ops, self._dyrep.pinned))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self.match_structure(state_dict, prefix)
        if self.structure['ops']:
            # the last three collect what the loader reports
            with torch.no_grad():
                loading.take_plain_weights(self, state_dict, prefix, self.survey.ops, args[-3:])
                if not self._dyrep.keep_norm:
                    loading.take_norms(self, state_dict, prefix, self.survey.ops)
        super()._load_from_state_dict(state_dict, prefix, *args)
