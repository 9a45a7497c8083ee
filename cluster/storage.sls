# Guarantees that shared volume groups and their volumes are there, and that this node has their locks.
#
# The bootstrap node alone makes them, and never on a disk that has anything, but with consent.
{% set cluster = salt['formula.config']('cluster') %}
{% set storage = cluster.storage %}

include:
  - cluster.locking
  - cluster.service
  - cluster.cib

{% for name, group in storage.volume_groups.items() %}
cluster_volume_group_{{ name }}:
  shared_volumes.group:
    - name: {{ name | yaml_dquote }}
    - devices: {{ group.devices | json }}
    - lock_manager: {{ storage.lock_manager | yaml_dquote }}
    - cluster: {{ cluster.name | yaml_dquote }}
    - bootstrap: {{ cluster.bootstrap_node | yaml_dquote }}
    - allow_format: {{ storage.allow_format | json }}
    - wait_seconds: {{ cluster.wait_seconds }}
    - require:
      - file: cluster_lvm_config
      - cluster_member: cluster_quorum
{% if storage.lock_manager == 'sanlock' %}
      - service: cluster_lock_service_lvmlockd
{% endif %}
{% if opts.id == cluster.bootstrap_node %}
      - cib: {{ 'cluster_cib_locking' if storage.lock_manager == 'dlm' else 'cluster_cib_fencing' }}

{% for volume, spec in group.get('volumes', {}).items() %}
cluster_volume_{{ name }}-{{ volume }}:
  shared_volumes.volume:
    - name: {{ volume | yaml_dquote }}
    - group: {{ name | yaml_dquote }}
    - size_mib: {{ spec.size_mib }}
    - require:
      - shared_volumes: cluster_volume_group_{{ name }}
{% endfor %}
{% endif %}
{% endfor %}
