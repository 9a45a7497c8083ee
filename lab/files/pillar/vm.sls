# A virtual machine host has a kernel of its own: what the formulas set there is in force.
kvm:
  hugepages:
    2M: 16
  kernel:
    args:
      transparent_hugepage: madvise
