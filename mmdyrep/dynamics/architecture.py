"""Which branches a network trains with: architecture parameters of a search (RepNAS), with their own optimizer."""
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union, cast

import torch
from torch import Tensor, nn

BranchKey = Tuple[str, str]  # op and branch


class Draw(NamedTuple):
    """What is sampled for one step: the ranks of all branches, and which of them run; both of shape (N,)."""

    ranks: Tensor
    mask: Tensor


class Architecture:
    """An architecture parameter alpha for each branch that is searched; N of them.

    For a step, ranks are alpha + noise (logistic: the difference of two draws from Gumbel's distribution), and the C
    branches of the greatest ranks, over the whole network, run. Each stands behind a gate
    ``w = mask + sigmoid(rank) - stop_gradient(sigmoid(rank))``, which is 1, and 0 for a branch that does not run. So
    the gradient of alpha is ``dL/dw * sigmoid'(rank)`` for those that run, and 0 for the others. Without noise, as for
    evaluation and for the final mask, ranks are alpha. Everything is computed on the CPU in float64.

    Args:
        keys (Sequence[tuple]): Op and branch, in the order of the network.
        constraint (int or float): C, the branch number constraint: a number, or a share of N (rounded down).
        lr (float): Of Adam. Defaults to 1e-4.
        betas (tuple): Of Adam. Defaults to (0.5, 0.999).
        weight_decay (float): Of alpha, as Adam has it: added to the gradient. Defaults to 5e-4.
        generator (torch.Generator, optional): Draws which of equal alphas is the greater one, once; the first in the
            network without it.

    Raises:
        ValueError: If C is no number from 1 to N.
    """

    def __init__(self, keys: Sequence[BranchKey], constraint: Union[int, float], lr: float = 1e-4,
                 betas: Tuple[float, float] = (0.5, 0.999), weight_decay: float = 5e-4,
                 generator: Optional[torch.Generator] = None) -> None:
        self.keys: List[BranchKey] = [cast(BranchKey, tuple(key)) for key in keys]
        self.count = branch_number(constraint, len(self.keys))
        self.alpha = nn.Parameter(torch.zeros(len(self.keys), dtype=torch.float64))
        self.optimizer = torch.optim.Adam([self.alpha], lr=lr, betas=cast(Tuple[float, float], tuple(betas)),
                                          weight_decay=weight_decay)
        self._order = torch.arange(len(self.keys)) if generator is None else torch.randperm(
            len(self.keys), generator=generator)

    def draw(self, generator: Optional[torch.Generator] = None) -> Draw:
        """Sample; without a generator there is no noise.

        Args:
            generator (torch.Generator, optional): Source of the noise.
        """
        ranks = self.alpha.detach().clone()
        if generator is not None:
            ranks += logistic(len(self.keys), generator)
        return Draw(ranks, greatest(ranks, self.count, self._order))

    def step(self, slopes: Sequence[Optional[Tensor]], draw: Draw, scale: Any = 1.0) -> None:
        """One step of Adam; none where a gradient is no finite number.

        Args:
            slopes (Sequence[Tensor]): dL/dw of the branches that run, in the order of the keys; None: no gradient.
            draw (Draw): What they ran by.
            scale (float or Tensor): What the slopes are still multiplied by. Defaults to 1.
        """
        known = [slope for slope in slopes if slope is not None]
        gradient = torch.zeros_like(self.alpha)
        if known:
            by_gate = torch.zeros_like(gradient)
            places = torch.tensor([slope is not None for slope in slopes])
            # in one transfer from the device
            by_gate[draw.mask.nonzero().flatten()[places]] = torch.stack(known).to('cpu', torch.float64) / float(scale)
            sigmoid = torch.sigmoid(draw.ranks)
            gradient = by_gate * sigmoid * (1 - sigmoid)
        if not gradient.isfinite().all():
            return
        self.alpha.grad = gradient
        self.optimizer.step()
        self.alpha.grad = None

    def chosen(self, mask: Tensor) -> List[BranchKey]:
        """Branches of a mask, in the order of the network."""
        return [key for key, on in zip(self.keys, mask.tolist()) if on]

    def ranking(self) -> List[Tuple[BranchKey, float]]:
        """Branches with their alpha, the greatest first; the first C are those that run in evaluation."""
        alpha = self.alpha.detach()
        return [(self.keys[place], alpha[place].item()) for place in _descending(alpha, self._order).tolist()]

    def state_dict(self) -> Dict[str, Any]:
        """All that a search goes on from, but for the settings."""
        return {'keys': [list(key) for key in self.keys], 'count': self.count, 'alpha': self.alpha.detach().clone(),
                'optimizer': self.optimizer.state_dict(), 'order': self._order.clone()}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: If it is of another search: with what is different.
        """
        if [tuple(key) for key in state['keys']] != self.keys:
            strange = set(map(tuple, state['keys'])) ^ set(self.keys)
            raise ValueError(f'the search of the checkpoint has {len(state["keys"])} branches, this one '
                             f'{len(self.keys)}; {sorted(strange)[0] if strange else "their order"} is different')
        if state['count'] != self.count:
            raise ValueError(f'the search of the checkpoint keeps {state["count"]} branches, this one {self.count}')
        with torch.no_grad():
            self.alpha.copy_(state['alpha'])
        self.optimizer.load_state_dict(state['optimizer'])
        self._order = state['order'].clone()


def branch_number(constraint: Union[int, float], number: int) -> int:
    """C: how many of a number of branches run.

    Raises:
        ValueError: If it is not from 1 to that number.
    """
    whole = isinstance(constraint, int) and not isinstance(constraint, bool)
    count = int(constraint if whole else constraint * number)
    if not 1 <= count <= number:
        raise ValueError(f'constraint={constraint} makes {count} of the {number} branches that are searched; '
                         f'it must be from 1 to {number}, or a share that comes to that')
    return count


def logistic(number: int, generator: torch.Generator) -> Tensor:
    """Noise of the logistic distribution, the difference of two draws from Gumbel's, of shape (number,), float64."""
    uniform = torch.rand(2, number, generator=generator, dtype=torch.float64)
    gumbel = -(-uniform.clamp_(min=torch.finfo(torch.float64).tiny).log()).log()
    return gumbel[0] - gumbel[1]


def greatest(ranks: Tensor, count: int, order: Tensor) -> Tensor:
    """Mask of the greatest ranks, of shape (N,); among equal ones those that come first in ``order``."""
    mask = torch.zeros_like(ranks, dtype=torch.bool)
    mask[_descending(ranks, order)[:count]] = True
    return mask


def _descending(ranks: Tensor, order: Tensor) -> Tensor:
    return order[ranks[order].sort(descending=True, stable=True).indices]
