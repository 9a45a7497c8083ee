# Guarantees the files of a cluster of the old kind: cman, corosync 1, clvmd. Nothing is installed, started or restarted.
{% set cluster = salt['formula.config']('cluster') %}
{% set declared = {} %}
{% for key in ['name', 'token', 'crypto', 'quorum', 'cman'] %}
{% do declared.update({key: cluster[key]}) %}
{% endfor %}
{% set files = {'cluster_conf': '/etc/cluster/cluster.conf', 'corosync_conf': '/etc/corosync/corosync.conf'} %}
{% if cluster.cman.clvm %}
{% do files.update({'lvm_conf': '/etc/lvm/lvm.conf'}) %}
{% endif %}

cluster_cman_node:
  cluster_node.fits:
    - nodes: {{ cluster.nodes | json }}

{% for kind, path in files.items() %}
cluster_cman_{{ kind }}:
  cman.configured:
    - name: {{ path }}
    - kind: {{ kind }}
    - cluster: {{ declared | json }}
    - nodes: {{ cluster.nodes | json }}
    - require:
      - cluster_node: cluster_cman_node
{% endfor %}
