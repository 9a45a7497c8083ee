# A container host has no kernel of its own.
kvm:
  kernel:
    manage: false
