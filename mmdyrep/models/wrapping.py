"""A module's class extended in place: no prefix in its keys, all its attributes where they were."""
from functools import lru_cache
from typing import Type

from torch import nn


@lru_cache(maxsize=None)
def extended(mixin: type, inner: Type[nn.Module]) -> Type[nn.Module]:
    """Class that inherits from ``mixin`` and ``inner`` and keeps the name of ``inner`` within its own."""
    namespace = {'__module__': mixin.__module__, '__doc__': inner.__doc__, '_mixin': mixin, '_inner_class': inner}
    return type(inner)(f'{mixin.prefix}{inner.__name__}', (mixin, inner), namespace)


def _empty(mixin: type, inner: Type[nn.Module]) -> nn.Module:
    """Instance without state, which unpickling and copying fill."""
    return object.__new__(extended(mixin, inner))


class Extension:
    """Base of mixins for :func:`extended`: pickles and copies though its class was made on the fly."""

    prefix = ''

    def __reduce_ex__(self, protocol: int) -> tuple:
        return _empty, (self._mixin, self._inner_class), self.__dict__

    def unwrap(self) -> nn.Module:
        """Give the module its own class back, in place."""
        self.__class__ = self._inner_class
        return self
