# A virtual machine host has a kernel of its own: what the formulas set there is in force.
kvm:
  hugepages:
    2M: 16
  kernel:
    args:
      transparent_hugepage: madvise
  modules:
    dummy:
      options:
        numdummies: 2
    vhost_net: {}
    kvm_intel:
      ensure: available
      options:
        nested: true
    pcspkr:
      ensure: blacklisted
  sysctl:
    vm.swappiness: 1
    vm.zone_reclaim_mode: 0
    net.bridge.bridge-nf-call-iptables: 0
    net.bridge.bridge-nf-call-ip6tables: 0
  ksm:
    enabled: true
    tunables:
      pages_to_scan: 200
