# Guarantees that LVM asks for locks where volume groups are shared, and that there is an agent for volumes that move with
# a guest. The daemons of locks are resources of the cluster.
{% set cluster = salt['formula.config']('cluster') %}

include:
  - cluster.packages

cluster_lvm_config:
  file.managed:
    - name: /etc/lvm/lvmlocal.conf
    - source: salt://cluster/files/etc/lvm/lvmlocal.conf
    - mode: '0644'
    - require:
      - pkg: cluster_packages

cluster_volume_agent:
  file.managed:
    - name: /usr/lib/ocf/resource.d/hypervisor/SharedVolume
    - source: salt://cluster/files/usr/lib/ocf/resource.d/hypervisor/shared_volume.py
    - template: jinja
    - context:
        python: {{ cluster.python }}
    - user: root
    - group: root
    - mode: '0755'
    - makedirs: true
    - require:
      - pkg: cluster_packages
