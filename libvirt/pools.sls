# Guarantees the storage pools that the pillar names. No image, folder or volume group is ever deleted.
{% set libvirt = salt['formula.config']('libvirt') %}
{% set kvm = salt['formula.config']('kvm') %}

include:
  - libvirt.service
{% if kvm.mounts %}
  - kvm.mounts
{% endif %}

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
{% for path in kvm.mounts if (pool.target | default('') ~ '/').startswith(path ~ '/') and ensure != 'absent' %}
      # Below the mount point something else would be found.
      - host_mount: kvm_mount_{{ path }}
{% endfor %}
{% endfor %}
