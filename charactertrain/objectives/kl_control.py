"""How strong the pull to the reference is over the steps: as it was set, or steered to a KL."""

from dataclasses import dataclass

_RATE = 0.1
"""K_beta of the paper: with the largest error the coefficient changes by 2 % a step."""
_LARGEST_ERROR = 0.2


@dataclass(frozen=True)
class KlController:
    """A proportional controller of the coefficient's logarithm: Ziegler et al. (2019), section 2.2.

    https://arxiv.org/abs/1909.08593. Where the KL is above its target the coefficient grows, below
    it falls: beta (1 + 0.1 e), with the relative error e = KL / target - 1 within -0.2 to 0.2.
    """

    coef: float
    """Beta of the next step."""
    target: float | None
    """Nats per token; None leaves the coefficient alone."""

    def after(self, kl: float) -> "KlController":
        """The controller once a step has measured `kl`, in nats per token."""
        if self.target is None:
            return self
        error = min(max(kl / self.target - 1, -_LARGEST_ERROR), _LARGEST_ERROR)
        return KlController(self.coef * (1 + _RATE * error), self.target)
