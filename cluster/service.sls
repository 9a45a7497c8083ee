# Guarantees that corosync and Pacemaker run, and that the cluster has quorum.
#
# Nothing restarts them here: a node that loses corosync is fenced. What a running corosync can take up it has been told.
{% set cluster = salt['formula.config']('cluster') %}
{% set nodes, leaving = {}, {} %}
{% for minion, node in cluster.nodes.items() %}
{% do (leaving if node.get('ensure') == 'absent' else nodes).update({minion: node}) %}
{% endfor %}

{% set secret = [] %}
{% for kind in ['stonith', 'resources'] %}
{% for name, spec in cluster[kind].items() if spec.get('secrets') and spec.get('ensure') != 'absent' %}
{% do secret.append(name) %}
{% endfor %}
{% endfor %}

include:
  - cluster.keys
  - cluster.corosync
{% if cluster.stonith or cluster.resources %}
  - cluster.secrets
{% endif %}
{% if cluster.sbd.enabled %}
  - cluster.sbd
{% endif %}
{% if cluster.storage.lock_manager %}
  - cluster.locking
{% endif %}

cluster_corosync_service:
  service.running:
    - name: corosync
    - enable: true
    - require:
      - corosync: cluster_corosync_conf
{% if cluster.sbd.enabled %}
      - service: cluster_sbd_service
{% endif %}
{% if cluster.storage.lock_manager %}
      - file: cluster_lvm_config
{% endif %}

{% if cluster.sbd.enabled %}
cluster_sbd_working:
  sbd.working:
    - devices: {{ cluster.sbd.devices | json }}
    - watchdog: {{ cluster.sbd.watchdog | yaml_dquote }}
    - watchdog_timeout: {{ cluster.sbd.watchdog_timeout }}
    - require:
      - service: cluster_corosync_service
{% endif %}

cluster_pacemaker_service:
  service.running:
    - name: pacemaker
    - enable: true
    - require:
      - service: cluster_corosync_service
{% if cluster.sbd.enabled %}
      - sbd: cluster_sbd_working
      - cib: cluster_sbd_cib
{% endif %}
{% if cluster.storage.lock_manager == 'sanlock' %}
      - service: cluster_lock_service_lvmlockd
{% endif %}
{% for name in secret %}
      - cib: cluster_secrets_{{ name }}
{% endfor %}

cluster_quorum:
  cluster_member.quorate:
    - nodes: {{ nodes | json }}
    - wait_seconds: {{ cluster.wait_seconds }}
    - require:
      - service: cluster_pacemaker_service

{% if cluster.sbd.enabled %}
cluster_sbd_announced:
  sbd.announced:
    - watchdog_timeout: {{ cluster.sbd.watchdog_timeout }}
    - devices: {{ cluster.sbd.devices | json }}
    - require:
      - cluster_member: cluster_quorum
{% endif %}

{% if leaving and opts.id == cluster.bootstrap_node %}
cluster_members_forgotten:
  cluster_member.forgotten:
    - nodes: {{ leaving | json }}
    - require:
      - cluster_member: cluster_quorum
{% endif %}
