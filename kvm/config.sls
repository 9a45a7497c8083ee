# Guarantees that QEMU guests are started with the settings of the pillar and nothing else.
#
# The daemon that reads this file is restarted by libvirt/service.sls; running guests keep running.
{% set kvm = salt['formula.config']('kvm') %}
{% set settings = dict(kvm.qemu_conf) %}
{% do settings.update(settings.pop('extra', {})) %}

include:
  - kvm.packages

kvm_qemu_conf:
  libvirt_conf.managed:
    - name: /etc/libvirt/qemu.conf
    - settings: {{ settings | json }}
    # It may hold console passwords.
    - mode: '0600'
    - require:
      - pkg: kvm_packages
