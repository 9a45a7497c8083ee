# Guarantees the virtual networks that the pillar names, and disturbs no guest without consent.
{% set libvirt = salt['formula.config']('libvirt') %}

include:
  - libvirt.service

{% for name, network in libvirt.networks.items() %}
{% set ensure = network.pop('ensure', 'running') %}
libvirt_network_{{ name }}:
  virtual_network.{{ ensure }}:
    - name: {{ name | yaml_dquote }}
{% if ensure != 'absent' %}
{% for key, value in network.items() %}
    - {{ key }}: {{ value | json }}
{% endfor %}
{% endif %}
    - require:
      - libvirt_daemon: libvirt_daemon
{% endfor %}
