# Guarantees the storage pools that the pillar names. No image, folder or volume group is ever deleted.
{% set libvirt = salt['formula.config']('libvirt') %}

include:
  - libvirt.service

{% for name, pool in libvirt.pools.items() %}
{% set ensure = pool.pop('ensure', 'running') %}
libvirt_pool_{{ name }}:
  storage_pool.{{ ensure }}:
    - name: {{ name | yaml_dquote }}
{% if ensure != 'absent' %}
{% for key, value in pool.items() %}
    - {{ key }}: {{ value | json }}
{% endfor %}
{% endif %}
    - require:
      - libvirt_daemon: libvirt_daemon
{% endfor %}
