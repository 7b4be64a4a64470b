"""From a working tree to jobs on a Ray cluster: submitting runs, following them, sweeps of them."""
