# Guarantees that LVM asks for locks where volume groups are shared. The daemons of locks are resources of the cluster.
include:
  - cluster.packages

cluster_lvm_config:
  file.managed:
    - name: /etc/lvm/lvmlocal.conf
    - source: salt://cluster/files/etc/lvm/lvmlocal.conf
    - mode: '0644'
    - require:
      - pkg: cluster_packages
