# Guarantees that QEMU guests are started with the settings of the pillar and nothing else.
#
# The daemon that reads this file is restarted by libvirt/service.sls; running guests keep running.
{% set kvm = salt['formula.config']('kvm') %}

include:
  - kvm.packages

kvm_qemu_conf:
  libvirt_conf.managed:
    - name: /etc/libvirt/qemu.conf
    - settings: {{ kvm.qemu_conf | json }}
    # It may hold console passwords.
    - mode: '0600'
    - require:
      - pkg: kvm_packages
