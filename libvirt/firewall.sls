# Guarantees that the listed networks reach libvirt through the packet filter that this host has.
#
# It only ever lets packets in: no policy is set, no rule of anybody else is changed. Without a filter that
# drops packets nothing is done.
{% set libvirt = salt['formula.config']('libvirt') %}
{% set firewall = libvirt.firewall %}
{% set ports = [] %}
{% if libvirt.tls.enabled %}
{% do ports.append('16514') %}
{% endif %}
{% if libvirt.console.enabled %}
{% do ports.append(libvirt.console.port | string) %}
{% endif %}
{% if firewall.migration %}
{# The ports that QEMU takes are a setting of qemu.conf. #}
{% set qemu = salt['formula.config']('kvm').qemu_conf %}
{% do ports.append(qemu.get('migration_port_min', 49152) ~ '-' ~ qemu.get('migration_port_max', 49215)) %}
{% endif %}

{% if firewall.ensure == 'absent' %}
libvirt_firewall:
  libvirt_firewall.absent: []
{% else %}
libvirt_firewall:
  libvirt_firewall.opened:
    - networks: {{ firewall.networks | json }}
    - ports: {{ ports | json }}
    - backend: {{ firewall.backend }}
    - zones: {{ firewall.zones | json }}
{% endif %}
