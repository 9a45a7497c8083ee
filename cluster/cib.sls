# Guarantees that fencing, resources and constraints are as declared, and that secret parameters are on the nodes alone.
#
# Every node has the secrets; the bootstrap node alone changes the CIB. Secrets are read from pillar by the state itself,
# so that this file does not hold them.
{% set cluster = salt['formula.config']('cluster') %}
{% set nodes = {} %}
{% for minion, node in cluster.nodes.items() if node.get('ensure') != 'absent' %}
{% do nodes.update({minion: node}) %}
{% endfor %}
{% set declared, secret = {}, {} %}
{% for key in ['properties', 'resource_defaults', 'operation_defaults', 'groups', 'constraints'] %}
{% do declared.update({key: cluster[key]}) %}
{% endfor %}
{% for kind in ['stonith', 'resources'] %}
{% for name, spec in cluster[kind].items() %}
{% set names = spec.pop('secrets', {}).keys() | list %}
{% if names %}
{% do spec.update({'secrets': names}) %}
{% endif %}
{% set kept = [] if spec.get('ensure') == 'absent' else names %}
{% if kept or spec.get('ensure') == 'absent' %}
{% set where = 'cluster:' ~ kind ~ ':' ~ name ~ ':secrets' %}
{% do secret.update({name: {'key': where, 'names': kept} }) %}
{% endif %}
{% endfor %}
{% do declared.update({kind: cluster[kind]}) %}
{% endfor %}

include:
  - cluster.packages
  - cluster.service

{% for name, one in secret.items() %}
cluster_secrets_{{ name }}:
  cib.secrets:
    - pillar_key: {{ one.key | yaml_dquote }}
    - resource: {{ name | yaml_dquote }}
    - parameters: {{ one.names | json }}
    - require:
      - pkg: cluster_packages
{% endfor %}

{% if opts.id == cluster.bootstrap_node %}
cluster_cib:
  cib.configured:
    - declared: {{ declared | json }}
    - nodes: {{ nodes | json }}
    - wait_seconds: {{ cluster.wait_seconds }}
    - require:
      - cluster_member: cluster_quorum
{% for name, one in secret.items() if one.names %}
      - cib: cluster_secrets_{{ name }}
{% endfor %}
{% endif %}
