"""Hosts to run the formulas on: podman containers and QEMU virtual machines on one layer-2 network."""
