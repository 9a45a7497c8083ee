# Guarantees that the packages of the enabled roles are installed; never upgrades or removes one.
{% set kvm = salt['formula.config']('kvm') %}
{% set packages = kvm.packages %}
{% set wanted = [] %}
{% for role in packages.enabled %}
{% do wanted.extend(packages.roles[role]) %}
{% endfor %}
{% do wanted.extend(packages.extra) %}

kvm_packages:
  pkg.installed:
    - pkgs: {{ wanted | unique | reject('in', packages.exclude) | list | json }}
    # What a package merely recommends (desktop viewers, UEFI images of other machines) can be
    # listed under kvm:packages:extra.
    - install_recommends: false
