# Guarantees mounts, now and after a boot; a dead file server holds up neither this run nor a boot.
{% set kvm = salt['formula.config']('kvm') %}

include:
  - kvm.packages

{% for path, mount in kvm.mounts | dictsort %}
{% set ensure = mount.get('ensure', 'mounted') %}
kvm_mount_{{ path }}:
  host_mount.{{ ensure }}:
    - name: {{ path | yaml_dquote }}
{% if ensure != 'absent' %}
    - device: {{ mount.device | yaml_dquote }}
    - fstype: {{ mount.fstype | yaml_dquote }}
    - opts: {{ mount.get('opts', []) | json }}
    - timeout: {{ mount.get('timeout', 30) }}
{% endif %}
    # They bring what mounts a network file system.
    - require:
      - pkg: kvm_packages
{% endfor %}
