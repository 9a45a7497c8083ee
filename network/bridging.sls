# Guarantees that packets which merely cross a bridge skip this host's packet filter, so that guests' DHCP gets through.
{% set network = salt['formula.config']('network') %}
{% set off = network.bridge_filter == 'off' %}

{% if off %}
network_bridge_sysctl_file:
  file.managed:
    - name: /etc/sysctl.d/91-hypervisor-bridge.conf
    - source: salt://network/files/etc/sysctl.d/91-hypervisor-bridge.conf
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true

# The settings appear with the module, whoever loads it and whenever.
network_bridge_udev_rule:
  file.managed:
    - name: /etc/udev/rules.d/91-hypervisor-bridge.rules
    - source: salt://network/files/etc/udev/rules.d/91-hypervisor-bridge.rules
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true

network_bridge_sysctl:
  kernel_settings.applied:
    - settings:
        net.bridge.bridge-nf-call-iptables: 0
        net.bridge.bridge-nf-call-ip6tables: 0
        net.bridge.bridge-nf-call-arptables: 0
    - file: /etc/sysctl.d/91-hypervisor-bridge.conf
    - if_there: true
    - require:
      - file: network_bridge_sysctl_file
{% else %}
network_bridge_sysctl_file:
  file.absent:
    - name: /etc/sysctl.d/91-hypervisor-bridge.conf

network_bridge_udev_rule:
  file.absent:
    - name: /etc/udev/rules.d/91-hypervisor-bridge.rules
{% endif %}
