"""The config of the plain network, made from that of its training with DyRep."""
import copy
import inspect
from typing import Any, Iterator, List, Tuple

from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, Registry

from mmdyrep.engine import DyRepHook, RandomStateHook, RepNASHook
from mmdyrep.models import DyRepBackbone

# What only training needs: the structure comes with the checkpoint, the files may be elsewhere by now.
STARTING_POINTS = ('structure', 'static', 'keep_norm', 'pretrained', 'init_cfg')
# What backbones with a re-parameterization of their own call their deploy form.
DEPLOY_FORMS = ('deploy', 'small_kernel_merged')
# Hooks that have nothing to do any more.
OURS = (DyRepHook, RandomStateHook, RepNASHook)


def is_type(node: Any, kind: type) -> bool:
    """Whether a config names a class: by itself, or by its name with or without a scope."""
    if not isinstance(node, dict) or 'type' not in node:
        return False
    named = node['type']
    return named is kind or isinstance(named, str) and named.split('.')[-1] == kind.__name__


def _is_ours(node: Any) -> bool:
    return any(is_type(node, kind) for kind in OURS)


def _wrapped(node: Any, path: Tuple[Any, ...] = ()) -> Iterator[Tuple[Any, ...]]:
    """Paths of the DyRepBackbones in a config."""
    if is_type(node, DyRepBackbone):
        yield path
    elif isinstance(node, dict):
        for key in node:
            yield from _wrapped(node[key], path + (key,))
    elif isinstance(node, (list, tuple)):
        for place, item in enumerate(node):
            yield from _wrapped(item, path + (place,))


def _locate(cfg: Config) -> Tuple[Any, Any]:
    """The node that holds the wrapped backbone, and its key there.

    Raises:
        ValueError: If there is no DyRepBackbone, or more than one.
    """
    paths: List[Tuple[Any, ...]] = list(_wrapped(cfg.model, ('model',)))
    if len(paths) != 1:
        raise ValueError(f'{cfg.filename or "the config"} has {len(paths) or "no"} DyRepBackbone in its model; '
                         'one is needed: give the config that the checkpoint was trained with')
    node = cfg
    for key in paths[0][:-1]:
        node = node[key]
    return node, paths[0][-1]


def bare_config(cfg: Config) -> Config:
    """The config with a wrapped backbone that starts plain and without files: a checkpoint brings the rest."""
    cfg = copy.deepcopy(cfg)
    holder, key = _locate(cfg)
    for name in STARTING_POINTS:
        holder[key].pop(name, None)
        holder[key]['backbone'].pop(name, None)
    return cfg


def class_of(registry: Registry, node: Any, cfg: Config) -> Any:
    """Class that a node of the config names, in the config's scope; None for what is not there."""
    with registry.switch_scope_and_registry(cfg.get('default_scope')) as scoped:
        return scoped.get(node['type']) if isinstance(node['type'], str) else node['type']


def plain_config(cfg: Config) -> Config:
    """Config without DyRep: the backbone as it was wrapped, in its own deploy form where it has one.

    Args:
        cfg (Config): With one DyRepBackbone in its model; left as it is.

    Returns:
        Config: Its network is what a fused checkpoint loads into with ``strict=True``.

    Raises:
        ValueError: If there is no DyRepBackbone, or more than one.
    """
    cfg = copy.deepcopy(cfg)
    holder, key = _locate(cfg)
    inner = holder[key]['backbone']
    kind = class_of(MODELS, inner, cfg)
    if hasattr(kind, 'switch_to_deploy'):
        inner.update({name: True for name in DEPLOY_FORMS if name in inspect.signature(kind.__init__).parameters})
    holder[key] = inner
    for name in ('default_hooks', 'custom_hooks'):
        hooks = cfg.get(name)
        if isinstance(hooks, dict):
            cfg[name] = {key: hook for key, hook in hooks.items() if not _is_ours(hook)}
        elif hooks:
            cfg[name] = [hook for hook in hooks if not _is_ours(hook)]
    for name in [name for name, value in cfg.items() if _is_ours(value)]:
        cfg.pop(name)
    if cfg.get('custom_imports') and not _needs_us(kind, cfg):
        imports = cfg.custom_imports['imports']
        rest = [name for name in ([imports] if isinstance(imports, str) else imports) if name != 'mmdyrep']
        if rest:
            cfg.custom_imports['imports'] = rest
        else:
            cfg.pop('custom_imports')
    cfg['load_from'], cfg['resume'] = None, False
    return cfg


def _needs_us(kind: type, cfg: Config) -> bool:
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    kinds = [kind, *(class_of(HOOKS, hook, cfg) for hook in hooks if isinstance(hook, dict) and 'type' in hook)]
    return any(getattr(one, '__module__', '').startswith('mmdyrep') for one in kinds)
