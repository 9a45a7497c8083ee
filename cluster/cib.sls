# Guarantees that fencing, resources and constraints are as declared.
#
# The bootstrap node alone changes the CIB. Of secret parameters it knows the names alone.
{% set cluster = salt['formula.config']('cluster') %}
{% set nodes = {} %}
{% for minion, node in cluster.nodes.items() if node.get('ensure') != 'absent' %}
{% do nodes.update({minion: node}) %}
{% endfor %}
{% set declared = {} %}
{% for key in ['properties', 'resource_defaults', 'operation_defaults', 'groups', 'constraints', 'sbd', 'storage'] %}
{% do declared.update({key: cluster[key]}) %}
{% endfor %}
{# Of a guest no more than what the cluster has to know: it may have secrets. #}
{% set guests = {} %}
{% for name, guest in salt['formula.config']('libvirt').guests.items() if guest.get('ha') %}
{% do guests.update({name: {'ha': guest.ha, 'ensure': guest.get('ensure', 'running'), 'disks': guest.get('disks', [])} }) %}
{% endfor %}
{% do declared.update({'guests': guests}) %}
{% set present = guests.items() | rejectattr('1.ensure', 'equalto', 'absent') | map('first') | list %}
{% for kind in ['stonith', 'resources'] %}
{% for name, spec in cluster[kind].items() if spec.get('secrets') %}
{% do spec.update({'secrets': spec.secrets.keys() | list}) %}
{% endfor %}
{% do declared.update({kind: cluster[kind]}) %}
{% endfor %}

include:
  - cluster.packages
  - cluster.secrets
  - cluster.service
{% if cluster.storage.lock_manager %}
  - cluster.storage
{% endif %}
{% if present %}
  - libvirt.guests
{% endif %}

{% if opts.id == cluster.bootstrap_node %}
{# Fencing has to work before there are locks or guests, and locks before there are volumes. #}
{% set stages = {'all': 'cluster_cib'} %}
{% if cluster.storage.lock_manager == 'dlm' %}
{% set stages = {'fencing': 'cluster_cib_fencing', 'locking': 'cluster_cib_locking', 'all': 'cluster_cib'} %}
{% elif guests or cluster.storage.lock_manager %}
{% set stages = {'fencing': 'cluster_cib_fencing', 'all': 'cluster_cib'} %}
{% endif %}
{% for stage, id in stages.items() %}
{{ id }}:
  cib.configured:
    - declared: {{ declared | json }}
    - nodes: {{ nodes | json }}
    - stage: {{ stage }}
    - wait_seconds: {{ cluster.wait_seconds }}
    - require:
      - cluster_member: cluster_quorum
{% if cluster.sbd.enabled %}
      - sbd: cluster_sbd_announced
{% endif %}
{% if stage == 'locking' %}
      - cib: cluster_cib_fencing
{% elif stages | length > 1 and loop.last %}
      - cib: {{ 'cluster_cib_locking' if 'locking' in stages else 'cluster_cib_fencing' }}
{% for guest in present %}
      - cluster_guest: libvirt_guest_{{ guest }}
{% endfor %}
{% for group, spec in cluster.storage.volume_groups.items() %}
      - shared_volumes: cluster_volume_group_{{ group }}
{% for volume in spec.get('volumes', {}) %}
      - shared_volumes: cluster_volume_{{ group }}-{{ volume }}
{% endfor %}
{% endfor %}
{% endif %}
{% endfor %}
{% endif %}
