# Guarantees that operators may manage guests: users in libvirt's group, and further groups that polkit lets in.
#
# On all systems libvirt's package brings the group and the rule of polkit that lets its members in without a
# password. Foreign members stay.
{% set kvm = salt['formula.config']('kvm') %}
{% set operators = kvm.operators %}

include:
  - kvm.packages

{% if operators.get('users') or operators.get('absent_users') %}
kvm_operators:
  group_members.present:
    - name: {{ operators.get('group', 'libvirt') }}
    - users: {{ operators.get('users', []) | json }}
    - absent: {{ operators.get('absent_users', []) | json }}
    - require:
      - pkg: kvm_packages
{% endif %}

{% if operators.get('groups') %}
kvm_operators_rule:
  file.managed:
    - name: {{ kvm.polkit.path }}/{{ kvm.polkit.file }}
    - source: salt://kvm/files{{ kvm.polkit.path }}/{{ kvm.polkit.file }}.j2
    - template: jinja
    - context:
        groups: {{ operators.groups | json }}
    - user: root
    - group: root
    - mode: '0644'
    # The packages make the folder, which belongs to polkit.
    - require:
      - pkg: kvm_packages
{% elif 'groups' in operators %}
kvm_operators_rule:
  file.absent:
    - name: {{ kvm.polkit.path }}/{{ kvm.polkit.file }}
{% endif %}
