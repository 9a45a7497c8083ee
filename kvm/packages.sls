# Guarantees that the packages of the enabled roles are installed; never upgrades or removes one.
{% set kvm = salt['formula.config']('kvm') %}
{% set packages = kvm.packages %}
{% set wanted = [] %}
{% for role in packages.enabled %}
{% do wanted.extend(packages.roles[role]) %}
{% endfor %}
{% do wanted.extend(packages.extra) %}
{% set names = wanted | unique | reject('in', packages.exclude) | list %}

# Another apt or dpkg is waited for. On other systems there is no such lock: dnf and zypper wait themselves.
kvm_package_lock:
  package_lock.free:
    - packages: {{ names | json }}
    - timeout: {{ packages.lock_timeout }}

kvm_packages:
  pkg.installed:
    - pkgs: {{ names | json }}
    # What a package merely recommends (desktop viewers, UEFI images of other machines) can be
    # listed under kvm:packages:extra.
    - install_recommends: false
    # Another process may have been quicker after the look at the lock.
    - retry:
        attempts: 2
        interval: 5
    - require:
      - package_lock: kvm_package_lock
