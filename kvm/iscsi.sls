# Guarantees connections to iSCSI targets, now and after a boot; a disk that is in use is never taken away.
#
# Who this host is to a target is read from pillar by the state itself, so that no password is in the compiled states.
{% set kvm = salt['formula.config']('kvm') %}
{% set ensures = kvm.iscsi.targets.values() | map(attribute='ensure', default='connected') | list %}

include:
  - kvm.packages

{% if kvm.iscsi.initiator %}
kvm_iscsi_initiator:
  iscsi.initiator_named:
    - name: {{ kvm.iscsi.initiator | yaml_dquote }}
    - require:
      - pkg: kvm_packages
{% endif %}

{% if 'connected' in ensures %}
{% for service in kvm.iscsi.services %}
kvm_iscsi_{{ service }}:
  service.enabled:
    - name: {{ service | yaml_dquote }}
    - require:
      - pkg: kvm_packages
{% endfor %}
{% endif %}

{% for name, target in kvm.iscsi.targets | dictsort %}
kvm_iscsi_target_{{ name }}:
{% if target.get('ensure') == 'absent' %}
  iscsi.disconnected:
    - name: {{ name | yaml_dquote }}
{% else %}
  iscsi.connected:
    - name: {{ name | yaml_dquote }}
    - portals: {{ target.portals | json }}
{% endif %}
    - require:
      - pkg: kvm_packages
{% if kvm.iscsi.initiator and target.get('ensure') != 'absent' %}
      - iscsi: kvm_iscsi_initiator
{% endif %}
{% endfor %}
