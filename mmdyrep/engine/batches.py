"""The batches of an interval that batch norm statistics are taken from."""
from collections import deque
from typing import Any, Deque, List, Optional

from .forwards import copied


class LastBatches:
    """The last batches before an update.

    Args:
        number (int): How many to keep.
    """

    def __init__(self, number: int) -> None:
        self._batches: Deque[Any] = deque(maxlen=number)
        self._due: Optional[int] = None

    def keep(self, due: int, left: int, batch: Any) -> None:
        """Keep a batch if it is among the last ones.

        Args:
            due (int): The update that it works towards; batches of another one go.
            left (int): Batches until then, this one included.
            batch (Any): As the data loader gave it; a copy is kept, for a training step may take it apart.
        """
        if due != self._due:
            self._batches.clear()
            self._due = due
        if left <= (self._batches.maxlen or 0):
            self._batches.append(copied(batch))

    def clear(self) -> None:
        """Free the memory."""
        self._batches.clear()

    def all(self) -> List[Any]:
        """What has been kept, the oldest first."""
        return list(self._batches)
