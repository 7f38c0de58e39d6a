"""Which op has which branches: as JSON, and as the names of a state dict tell it."""
import re
from dataclasses import replace
from typing import Any, Container, Dict, Iterable, List, Mapping, Match, Optional, Set, cast

from torch import nn

from .block import Block
from .branches import BRANCHES
from .geometry import Geometry
from .handing import why_not_now

VERSION = 1
Ops = Dict[str, List[str]]

# the convolutions inside a block that can be expanded again
_NESTED = re.compile(r'^(?P<parent>.+)\.branches\.(?P<branch>kxk|1x1_kxk)\.conv$')
_IN_BLOCK = re.compile(rf'\.branches\.(?:{"|".join(BRANCHES)})\.(?:conv1|bn1|conv|bn)(?=\.|$)')
# a number is no branch: networks have lists of this name, too (HRNet's stage2.0.branches.0)
_BRANCH_KEY = re.compile(r'^(?P<op>.+)\.branches\.(?P<branch>(?!\d+\.)[^.]+)\.(?:conv1|bn1|conv|bn)\.[^.]+$')


class StructureError(ValueError):
    """A structure that does not fit the network; nothing has been changed."""


def blocks_of(model: nn.Module) -> Dict[str, Block]:
    """Blocks by name, outer ones before those nested in them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Block)}


def describe(model: nn.Module) -> Dict[str, Any]:
    """Structure of a network: ``{'version': 1, 'ops': {op: branch names}}``, parents first."""
    return {'version': VERSION, 'ops': {name: list(block.branches) for name, block in blocks_of(model).items()}}


def _match_nested(name: str, roots: Container[str]) -> Optional[Match[str]]:
    # networks have modules called `branches` of their own (HRNet), some with our names
    return None if name in roots else _NESTED.match(name)


def depth_of(name: str, roots: Container[str] = ()) -> int:
    """How many blocks the op of this name lies in.

    Args:
        name (str): Of the op.
        roots (Container[str]): Ops of the plain network, as far as known: they lie in none, whatever their names.
    """
    match = _match_nested(name, roots)
    return 1 + depth_of(match['parent'], roots) if match else 0


def root_of(name: str, roots: Optional[Container[str]] = None) -> str:
    """Op of the plain network that an op, a module or a key lies in; the name itself outside of blocks.

    Args:
        name (str): Of the op, the module or the key.
        roots (Container[str], optional): Ops of the plain network. Defaults to whatever looks like one.
    """
    cuts = [name[:match.start()] for match in _IN_BLOCK.finditer(name)]
    return next((cut for cut in cuts if roots is None or cut in roots), name)


def ops_within(model: nn.Module, name: str) -> List[str]:
    """The op of this name and those nested in it, outer ones first."""
    op = model.get_submodule(name)
    if not isinstance(op, Block):
        return [name]
    inner = [f'{name}.branches.{branch}.conv' for branch in ('kxk', '1x1_kxk') if branch in op.branches]
    return [name, *(nested for op_name in inner for nested in ops_within(model, op_name))]


def parent_of(name: str, roots: Container[str] = ()) -> Optional[str]:
    """Name of the branch that a nested op is the last convolution of; None for an op of the plain network."""
    return name.rsplit('.', 1)[0] if _match_nested(name, roots) else None


def root_of_key(key: str, roots: Optional[Container[str]] = None) -> Optional[str]:
    """Op of the plain network whose block this key of a state dict may belong to; None for other keys."""
    match = _BRANCH_KEY.match(key)
    return root_of(match['op'], roots) if match else None


def ops_in_keys(keys: Iterable[str], roots: Container[str] = ()) -> Ops:
    """Ops and branches that the keys of a state dict show.

    Args:
        keys (Iterable[str]): All of them of blocks, if they look like it.
        roots (Container[str]): Ops of the plain network, as far as known.

    Raises:
        StructureError: If a branch is unknown, as in a file of a newer version.
    """
    found: Dict[str, Set[str]] = {}
    for key in keys:
        match = _BRANCH_KEY.match(key)
        if not match:
            continue
        found.setdefault(match['op'], set()).add(match['branch'])
        # the key of a nested op shows its parents, too
        nested = _match_nested(match['op'], roots)
        while nested:
            found.setdefault(nested['parent'], set()).add(nested['branch'])
            nested = _match_nested(nested['parent'], roots)
    for op, names in found.items():
        unknown = sorted(names - set(BRANCHES))
        if unknown:
            raise StructureError(f'{op}: unknown branch {unknown[0]!r} in the state dict; this version knows '
                                 f'{list(BRANCHES)}. Was it written by a newer version of mmdyrep?')
    ordered = sorted(found, key=lambda op: depth_of(op, roots))
    return {op: [name for name in BRANCHES if name in found[op]] for op in ordered}


def check(structure: Any, model: nn.Module, ops: Iterable[str], reasons: Mapping[str, str]) -> Ops:
    """Refuse what does not fit, before anything is changed.

    Args:
        structure (dict): As of :func:`describe`.
        model (nn.Module): The network, with or without blocks.
        ops (Iterable[str]): Ops of the plain network that can be expanded.
        reasons (Mapping[str, str]): Why the other convolutions can't be.

    Returns:
        dict: Branch names of each op, parents first.

    Raises:
        StructureError: With the name of the op and what is wrong about it.
    """
    if not isinstance(structure, Mapping) or not isinstance(structure.get('ops'), Mapping):
        raise StructureError("a structure is a dict {'version': 1, 'ops': {op: [branch, ...]}}, "
                             f'got {str(structure)[:80]!r}')
    version = structure.get('version')
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise StructureError(f'version of the structure must be a positive integer, got {version!r}')
    if version > VERSION:
        raise StructureError(f'the structure has version {version}, this mmdyrep reads up to {VERSION}; update mmdyrep')
    unknown = set(structure) - {'version', 'ops'}
    if unknown:
        raise StructureError(f'unknown keys {sorted(unknown)} in the structure')
    wanted = structure['ops']
    for name in wanted:
        if not isinstance(name, str):
            raise StructureError(f'{name!r}: the name of an op must be text')
    eligible = set(ops)
    geometries: Dict[str, Geometry] = {}
    for name in sorted(wanted, key=lambda op: depth_of(op, eligible)):
        geometries[name] = _check_op(name, wanted, model, eligible, reasons, geometries)
    return {name: [branch for branch in BRANCHES if branch in wanted[name]] for name in geometries}


def _check_op(name: str, wanted: Mapping[str, Any], model: nn.Module, eligible: Set[str],
              reasons: Mapping[str, str], geometries: Mapping[str, Geometry]) -> Geometry:
    names = wanted[name]
    if not isinstance(names, (list, tuple)) or not all(isinstance(item, str) for item in names):
        raise StructureError(f'{name}: branches must be a list of names, got {names!r}')
    unknown = [item for item in names if item not in BRANCHES]
    if unknown:
        raise StructureError(f'{name}: unknown branch {unknown[0]!r}; there are {list(BRANCHES)}')
    if len(set(names)) != len(names) or 'kxk' not in names or len(names) < 2:
        raise StructureError(f"{name}: needs 'kxk' and at least one other branch, each once, got {list(names)}")
    nested = _match_nested(name, eligible)
    if nested:
        parent, branch = nested['parent'], nested['branch']
        if branch not in wanted.get(parent, ()) or parent not in geometries:
            raise StructureError(f'{name}: lies in branch {branch!r} of {parent}, which the structure does not have')
        outer = geometries[parent]
        # 1x1_kxk pads in front of its KxK convolution
        geometry = outer if branch == 'kxk' else replace(outer, padding=(0, 0))
    elif name in eligible:
        op = model.get_submodule(name)
        reason = '' if isinstance(op, Block) else why_not_now(model, name)
        if reason:
            raise StructureError(f'{name}: {reason}')
        geometry = op.geometry if isinstance(op, Block) else Geometry.of(cast(nn.Conv2d, op))
    else:
        raise StructureError(f"{name}: {reasons.get(name, 'the network has no convolution of this name')}")
    for item in names:
        reason = BRANCHES[item].misfit(geometry)
        if reason:
            raise StructureError(f'{name}: branch {item!r} {reason}')
    return geometry
