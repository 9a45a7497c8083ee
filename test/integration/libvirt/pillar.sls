# Pillar of the suite `libvirt` for a single host that is its own certificate authority.
kvm: {}

libvirt:
  pki:
    # The signing policies are in this host's own configuration: nobody else is asked.
    ca_server: hypervisor
