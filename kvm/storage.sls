# Guarantees the folder that holds disk images; never touches what is in it.
{% set kvm = salt['formula.config']('kvm') %}
{% set images = kvm.images %}

{% set own_group = images.user != 'root' or images.group != 'root' %}
{% if own_group %}
include:
  - kvm.packages
{% endif %}

kvm_images:
  file.directory:
    - name: {{ images.path | yaml_dquote }}
    - user: {{ images.user | yaml_dquote }}
    - group: {{ images.group | yaml_dquote }}
    - mode: {{ images.mode | yaml_dquote }}
    - makedirs: true
{% if own_group %}
    # The packages make QEMU's user and group.
    - require:
      - pkg: kvm_packages
{% endif %}
