# Pillar of the suite `libvirt` for a single host that is its own certificate authority.
kvm: {}

libvirt:
  tls:
    # It may connect to itself, which shows that the port works; nobody else may.
    allowed_hosts:
      - hypervisor
  pki:
    # Nobody else is asked: the signing policies are in this host's own configuration.
    ca_server: ''
