"""When updates happen."""
import math
from dataclasses import dataclass
from typing import List, Optional


@dataclass(frozen=True)
class Calendar:
    """Updates follow epoch (or iteration) e if begin < e <= end and (e - begin) % interval == 0, counted from 1.

    Args:
        interval (int): t of Algorithm 1.
        begin (int): Nothing until it is done.
        end (int, optional): Nothing after it.
    """

    interval: int
    begin: int = 0
    end: Optional[int] = None

    def due(self, now: int) -> bool:
        """Whether an update follows ``now``."""
        return now > self.begin and self.next(now) == now

    def next(self, now: int) -> Optional[int]:
        """The update that ``now`` works towards."""
        if now <= self.begin:
            return None
        due = self.begin + math.ceil((now - self.begin) / self.interval) * self.interval
        return due if self.end is None or due <= self.end else None

    def first_after(self, done: int) -> Optional[int]:
        """The first update after so many epochs (or iterations)."""
        return self.next(max(done, self.begin) + 1)

    def described(self) -> List[str]:
        """The settings as a person writes them."""
        return [f'{name}={value}' for name, value in vars(self).items() if value]
