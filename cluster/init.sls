# Hosts that form a cluster, with Corosync and Pacemaker: one key, one configuration, quorum.
#
# The wrong pillar is refused here, before anything changes. Without nodes nothing is done.
{% set cluster = salt['formula.config']('cluster') %}
{% set leaves = cluster.nodes.get(opts.id, {}).get('ensure') == 'absent' %}

{% if cluster.nodes %}
include:
{% if cluster.stack == 'cman' %}
  # the files of a cluster of the old kind
  - cluster.cman
{% elif leaves %}
  # this host leaves the cluster
  - cluster.absent
{% else %}
  # Corosync, Pacemaker, agents and a tool for persons, none of which starts by itself
  - cluster.packages
  # the key that makes nodes of one cluster
  - cluster.keys
  # corosync.conf, and a running corosync that has taken it up
  - cluster.corosync
  # the services, and quorum
  - cluster.service
{% if cluster.sbd.enabled %}
  # fencing over a shared disk, or by a watchdog alone
  - cluster.sbd
{% endif %}
{% set guests = salt['formula.config']('libvirt').guests.values() | selectattr('ha', 'defined') | selectattr('ha') | list %}
{% if guests or cluster.sbd.enabled or cluster.storage.lock_manager or cluster.properties or cluster.resource_defaults
      or cluster.operation_defaults or cluster.stonith or cluster.resources or cluster.groups
      or cluster.constraints.locations or cluster.constraints.orders or cluster.constraints.colocations %}
  # fencing, resources and constraints
  - cluster.cib
{% endif %}
{% if cluster.storage.lock_manager %}
  # shared volume groups
  - cluster.storage
{% endif %}
{% endif %}

# Everything that was written is on disk when the run reports success.
cluster_durable:
  durable.synced:
    - paths:
      - /etc
      - /usr
      - /var
    - order: last
{% endif %}
