# Guarantees that this node has the cluster's key, and that nobody else gets it.
#
# The site's key is read from pillar by the state itself, so that this file does not hold it. Without one the bootstrap
# node makes it, and seals it for each other node with that one's public key.
{% set cluster = salt['formula.config']('cluster') %}
{% set keys, nodes = cluster['keys'], cluster.nodes %}
{% set own = keys.get('corosync') %}
{% set others = [] %}
{% for minion, node in nodes.items() if minion != cluster.bootstrap_node and node.get('ensure') != 'absent' %}
{% do others.append(minion) %}
{% endfor %}
{% set private = '/etc/corosync/hypervisor/private.pem' %}

include:
  - cluster.packages

{% if others and not own %}
cluster_key_pair:
  cluster_key.published:
    - name: {{ private }}
    - keeper: {{ keys.keeper | yaml_dquote }}
    - source: {{ keys.folder | yaml_dquote }}
    - wait_seconds: {{ cluster.wait_seconds }}
    - require:
      - pkg: cluster_packages
{% endif %}

cluster_key:
  cluster_key.present:
    - name: /etc/corosync/authkey
    - cluster: {{ cluster.name | yaml_dquote }}
    - bootstrap: {{ cluster.bootstrap_node | yaml_dquote }}
    - private: {{ private }}
    - source: {{ keys.folder | yaml_dquote }}
    - pillar_key: cluster:keys:corosync
    - wait_seconds: {{ cluster.wait_seconds }}
    - require:
      - pkg: cluster_packages
{% if others and not own %}
      - cluster_key: cluster_key_pair
{% endif %}

{% if others and not own and opts.id == cluster.bootstrap_node %}
# The services do not wait for this: nodes that have their key already form the cluster without the one that is missing.
cluster_key_handed_out:
  cluster_key.handed_out:
    - name: /etc/corosync/authkey
    - cluster: {{ cluster.name | yaml_dquote }}
    - nodes: {{ others | json }}
    - private: {{ private }}
    - keeper: {{ keys.keeper | yaml_dquote }}
    - source: {{ keys.folder | yaml_dquote }}
    - wait_seconds: {{ cluster.wait_seconds }}
    - require:
      - cluster_key: cluster_key
{% endif %}
