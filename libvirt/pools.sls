# Guarantees the storage pools that the pillar names. No image, folder or volume group is ever deleted.
{% set libvirt = salt['formula.config']('libvirt') %}
{% set kvm = salt['formula.config']('kvm') %}
{# Guests that go are gone before what they used. #}
{% set going = libvirt.pools.values() | selectattr('ensure', 'defined') | selectattr('ensure', 'equalto', 'absent') | list %}
{% set leaving = {} %}
{% for guest, spec in libvirt.guests.items() if going and spec.get('ensure') == 'absent' %}
{% do leaving.update({guest: 'cluster_guest' if spec.get('ha') else 'guest'}) %}
{% endfor %}

include:
  - libvirt.service
{% if leaving %}
  - libvirt.guests
{% endif %}
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
{% elif leaving %}
    - leaving: {{ leaving | list | json }}
{% endif %}
    - require:
      - libvirt_daemon: libvirt_daemon
{% for guest, state in leaving.items() if ensure == 'absent' %}
      - {{ state }}: libvirt_guest_{{ guest }}
{% endfor %}
{% for path in kvm.mounts if (pool.target | default('') ~ '/').startswith(path ~ '/') and ensure != 'absent' %}
      # Below the mount point something else would be found.
      - host_mount: kvm_mount_{{ path }}
{% endfor %}
{% endfor %}
