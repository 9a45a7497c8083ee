# Guarantees that the secret parameters of fence devices and resources are on this node, and on the nodes alone.
#
# Every node has them before its Pacemaker starts: a device that starts without is kept from this node until a person
# has its failure forgotten. They are read from pillar by the state itself, so that this file does not hold them.
{% set cluster = salt['formula.config']('cluster') %}

include:
  - cluster.packages
  - cluster.cib

{% for kind in ['stonith', 'resources'] %}
{% for name, spec in cluster[kind].items() %}
{% set names = [] if spec.get('ensure') == 'absent' else spec.get('secrets', {}).keys() | list %}
cluster_secrets_{{ name }}:
  cib.secrets:
    - pillar_key: {{ ('cluster:' ~ kind ~ ':' ~ name ~ ':secrets') | yaml_dquote }}
    - resource: {{ name | yaml_dquote }}
    - parameters: {{ names | json }}
    - fences: {{ (kind == 'stonith') | json }}
    - require:
      - pkg: cluster_packages
{% if not names and opts.id == cluster.bootstrap_node %}
      # Those that are not declared any more go once the CIB does not ask for them.
      - cib: cluster_cib
{% endif %}
{% endfor %}
{% endfor %}
