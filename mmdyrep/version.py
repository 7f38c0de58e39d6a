"""Version of the package."""
from typing import Tuple

__version__ = '0.1.0'


def parse_version_info(version: str) -> Tuple[int, ...]:
    """``'1.2.3'`` as ``(1, 2, 3)``; what follows the numbers, as ``rc1``, is left out."""
    numbers = []
    for part in version.split('.'):
        digits = part[:len(part) - len(part.lstrip('0123456789'))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


version_info = parse_version_info(__version__)
