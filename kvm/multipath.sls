# Guarantees /etc/multipath.conf whole, read by multipath before a running multipathd is told of it.
{% set kvm = salt['formula.config']('kvm') %}

include:
  - kvm.packages

kvm_multipath:
  multipath_conf.managed:
    - name: /etc/multipath.conf
    - settings: {{ kvm.multipath | json }}
    - require:
      - pkg: kvm_packages
