# Pillar of the suite `console` for a single host that is its own certificate authority.
kvm: {}

libvirt:
  pki:
    ca_server: ''
  console:
    enabled: true
    # The name of its own certificate; the page would have another one.
    clients:
      - hypervisor
