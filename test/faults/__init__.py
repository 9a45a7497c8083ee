"""Faults on purpose: what a host must survive, tried again and again. `make faults` runs them."""
