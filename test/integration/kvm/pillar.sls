# Pillar of the suite `kvm`: the defaults, so that the suite shows what a host gets that sets nothing.
kvm: {}
