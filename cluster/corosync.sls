# Guarantees that corosync.conf is as declared and was judged by corosync, and that a running corosync has taken it up.
{% set cluster = salt['formula.config']('cluster') %}
{% set nodes, leaving = {}, {} %}
{% for minion, node in cluster.nodes.items() %}
{% do (leaving if node.get('ensure') == 'absent' else nodes).update({minion: node}) %}
{% endfor %}
{% set declared = {} %}
{% for key in ['name', 'links', 'crypto', 'token', 'quorum'] %}
{% do declared.update({key: cluster[key]}) %}
{% endfor %}

include:
  - cluster.packages
  - cluster.keys

cluster_corosync_conf:
  corosync.configured:
    - name: /etc/corosync/corosync.conf
    - cluster: {{ declared | json }}
    - nodes: {{ nodes | json }}
    - leaving: {{ leaving | json }}
    - allow_restart: {{ cluster.allow_restart | json }}
    - wait_seconds: {{ cluster.wait_seconds }}
    - require:
      - pkg: cluster_packages
      # corosync does not judge a file without the key.
      - cluster_key: cluster_key
