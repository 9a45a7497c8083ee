# Guarantees DHCP and DNS on the private networks that the pillar names, each by a daemon of its own.
{% set network = salt['formula.config']('network') %}
{% for one in network.mesh.values() %}
{% do one.pop('psk', none) %}
{% endfor %}

include:
  - network.packages
{% if network.ovs.bridges or network.mesh %}
  - network.openvswitch
{% endif %}

network_dnsmasq_unit:
  file.managed:
    - name: /etc/systemd/system/hypervisor-dnsmasq@.service
    - source: salt://network/files/etc/systemd/system/hypervisor-dnsmasq@.service
    - user: root
    - group: root
    - mode: '0644'

{% for name, served in network.dnsmasq.items() %}
{% if served.pop('ensure', 'present') == 'absent' %}
network_dnsmasq_{{ name }}:
  dnsmasq_network.absent:
    - name: {{ name }}
{% else %}
network_dnsmasq_{{ name }}:
  dnsmasq_network.served:
    - name: {{ name }}
{% for key, value in served.items() %}
    - {{ key }}: {{ value | json }}
{% endfor %}
    - mesh: {{ network.mesh | json }}
    - require:
      - pkg: network_packages
      - file: network_dnsmasq_unit
{% if network.ovs.bridges or network.mesh %}
      - ovs_addresses: network_ovs_addresses
{% endif %}
{% endif %}
{% endfor %}
