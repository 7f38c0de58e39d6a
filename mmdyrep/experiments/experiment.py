"""What an experiment is made of."""
from dataclasses import dataclass, field
from typing import Any, List, Mapping, Optional, Tuple

TOP1, BOX_AP, MIOU = 'accuracy/top1', 'coco/bbox_mAP', 'mIoU'
# as a reader knows them
NAMES = {TOP1: 'top-1', BOX_AP: 'box AP', MIOU: 'mIoU'}


@dataclass(frozen=True)
class Run:
    """A training, or a network that is counted.

    Args:
        row (str): What is compared.
        column (str): The data set, or the network.
        config (str): Below configs/.
        options (dict): What is changed in the config, as ``--cfg-options`` has it. In texts ``{checkpoint}`` stands for
            the last checkpoint of ``before``, ``{backbone}`` for its backbone, fused, ``{structure:N}`` for the file of
            the structure that it had at epoch N.
        paper (dict): The paper's figures: ``value`` (%), ``macs``, ``parameters``.
        metric (str): Whose last value is the result.
        before (Run, optional): Trained first, with the same seed.
        learning (bool): What became of its branches is part of the result; all its checkpoints are to be kept.
    """

    row: str
    column: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    metric: str = TOP1
    before: Optional['Run'] = None
    learning: bool = False


@dataclass(frozen=True)
class Experiment:
    """A table or a figure.

    Args:
        title (str): One line.
        question (str): What is compared, and what stays the same.
        full (list[Run]): As in the paper.
        small (list[Run]): On Fashion-MNIST.
        column (str): What the columns of the runs are.
        picture (str): 'dots' (each seed, means and intervals), 'curves' (by epoch), 'costs' (accuracy against average
            MACs), 'stem' (the first block of the first run), 'learning' (what became of the branches, of runs that are
            asked for it), 'counts' (nothing is trained: networks are counted).
        theirs (tuple): Rows of the paper that nothing is trained for: row and figures.
        first_seed (int): The runs have this seed and those that follow.
    """

    title: str
    question: str
    full: List[Run]
    small: List[Run]
    column: str = 'data'
    picture: str = 'dots'
    theirs: Tuple[Tuple[str, str], ...] = ()
    first_seed: int = 1


@dataclass(frozen=True)
class Claim:
    """That one row is above another, or at least not more than a margin below it.

    Args:
        text (str): As a sentence.
        row (str): Of which it is claimed.
        reference (str): The row that it is compared with.
        margin (float): Points that may be missing. Defaults to 0: ``row`` is above.
        time (float, optional): Share of the reference's time that is claimed to do. Defaults to none.
    """

    text: str
    row: str
    reference: str
    margin: float = 0.0
    time: Optional[float] = None


@dataclass(frozen=True)
class Study(Experiment):
    """A comparison that the paper does not have, at small size alone; the rows of a seed are compared in pairs.

    Args:
        references (tuple): Rows that the table compares each row with; the first is the plain network.
        claims (tuple): What the differences are to decide.
    """

    references: Tuple[str, ...] = ()
    claims: Tuple[Claim, ...] = ()

    @property
    def compared_with(self) -> List[str]:
        """The references, and what claims are about beside them."""
        return list(dict.fromkeys([*self.references, *(claim.reference for claim in self.claims)]))
