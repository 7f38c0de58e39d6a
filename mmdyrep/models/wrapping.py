"""A module's class extended in place: no prefix in its keys, all its attributes where they were."""
import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Dict, Tuple, Type

from torch import nn

if TYPE_CHECKING:
    Mixed = nn.Module  # what mixins are mixed into
else:
    Mixed = object


@lru_cache(maxsize=None)
def extended(mixin: Type['Extension'], inner: Type[nn.Module]) -> Type[nn.Module]:
    """Class that inherits from ``mixin`` and ``inner`` and keeps the name of ``inner`` within its own."""
    namespace = {'__module__': mixin.__module__, '__doc__': inner.__doc__, '_mixin': mixin, '_inner_class': inner}
    kind: Any = type(inner)
    made: Type[nn.Module] = kind(f'{mixin.prefix}{inner.__name__}', (mixin, inner), namespace)
    return made


def _empty(mixin: Type['Extension'], inner: Type[nn.Module]) -> nn.Module:
    """Instance without state, which unpickling and copying fill."""
    return object.__new__(extended(mixin, inner))  # type: ignore[arg-type]


class Extension(Mixed):
    """Base of mixins for :func:`extended`: pickles and copies though its class was made on the fly."""

    prefix = ''
    # of the classes that `extended` makes
    _mixin: Type['Extension']
    _inner_class: Type[nn.Module]

    @classmethod
    def made_again(cls, *args: Any, **kwargs: Any) -> nn.Module:
        """What code gets that makes a second module of the class of a first one, with or without arguments.

        Without, it fills the instance itself (nn.DataParallel, copies of torch.fx); with, the inner class knows what
        they mean (slices of nn.Sequential).
        """
        return cls._inner_class(*args, **kwargs) if args or kwargs else object.__new__(cls)

    def __deepcopy__(self, memo: Dict[int, Any]) -> nn.Module:
        own = type(self)
        if hasattr(self._inner_class, '__deepcopy__'):
            # as of torch.fx, which makes a class for each module: under its own, which it writes to
            self.__class__ = self._inner_class  # type: ignore[assignment]
            try:
                copied = copy.deepcopy(self, memo)
            finally:
                self.__class__ = own
            copied.__class__ = extended(self._mixin, type(copied))  # type: ignore[arg-type, assignment]
        else:
            copied = object.__new__(own)
        memo[id(self)] = copied
        for key, value in self.__dict__.items():
            # such copies leave out what they don't know
            if key not in copied.__dict__:
                copied.__dict__[key] = copy.deepcopy(value, memo)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Tuple[Any, ...]:
        return _empty, (self._mixin, self._inner_class), self.__dict__

    def unwrap(self) -> nn.Module:
        """Give the module its own class back, in place."""
        self.__class__ = self._inner_class  # type: ignore[assignment]
        return self
