"""Experiments: one file is one experiment of one paper."""
