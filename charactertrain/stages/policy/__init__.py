"""The policy: rollouts, optimisation, and what is watched meanwhile."""
