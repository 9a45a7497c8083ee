"""Figures as ratios within one run: they mean the same on a slow machine and on a fast one."""
