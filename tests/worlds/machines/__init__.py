"""Machines that are not there, or are not that small: a second host, a GPU, Slurm, little memory."""
