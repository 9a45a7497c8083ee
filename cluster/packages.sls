# Guarantees that the packages of the enabled roles are installed; never upgrades or removes one.
#
# Debian starts daemons when it installs them, with an example for a configuration. They are held back until this host
# has the cluster's key, and one that has left never starts again.
{% set cluster = salt['formula.config']('cluster') %}
{% set packages = cluster.packages %}
{% set wanted = [] %}
{% set roles = packages.enabled + [cluster.tooling] %}
{# Daemons of which Pacemaker or corosync alone starts what is needed. #}
{% set masked = ['pcsd'] if cluster.tooling == 'pcs' else [] %}
{% if cluster.sbd.enabled %}
{% do roles.append('sbd') %}
{% do masked.append('sbd_remote') %}
{% endif %}
{% if cluster.storage.lock_manager %}
{% do roles.append(cluster.storage.lock_manager) %}
{# Those of sanlock are services, which run before the cluster does. #}
{% do masked.extend(['dlm', 'lvmlockd', 'lvmlocks'] if cluster.storage.lock_manager == 'dlm' else []) %}
{% endif %}
{# What each unit gets beside it. A daemon of sanlock that has leases cannot be started anew, so it starts right. #}
{% set held = {'corosync': 'hypervisor.conf', 'pacemaker': 'hypervisor.conf'} %}
{% if cluster.storage.lock_manager == 'sanlock' %}
{% do held.update({'wdmd': 'wdmd.conf', 'sanlock': 'sanlock.conf', 'lvmlockd': 'lvmlockd.conf', 'lvmlocks': 'lvmlocks.conf'}) %}
{% endif %}
{% for role in roles %}
{% do wanted.extend(packages.roles[role]) %}
{% endfor %}
{% do wanted.extend(packages.extra) %}
{% set names = wanted | unique | reject('in', packages.exclude) | list %}

cluster_node:
  cluster_node.fits:
    - nodes: {{ cluster.nodes | json }}

{% for unit, source in held.items() %}
cluster_unit_{{ unit }}:
  file.managed:
    - name: /etc/systemd/system/{{ unit }}.service.d/hypervisor.conf
    - source: salt://cluster/files/etc/systemd/system/{{ source }}
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true
    - require:
      - cluster_node: cluster_node
{% endfor %}

# pcs manages this cluster without its daemon, which would let anybody try passwords over the network. sbd_remote holds
# up the boot, and daemons of locks that run by themselves are not those that the cluster fences.
{% for unit in masked %}
cluster_unit_{{ unit }}:
  file.symlink:
    - name: /etc/systemd/system/{{ unit }}.service
    - target: /dev/null
    - require:
      - cluster_node: cluster_node
{% endfor %}

# Another apt or dpkg is waited for. On other systems there is no such lock: dnf and zypper wait themselves.
cluster_package_lock:
  package_lock.free:
    - packages: {{ names | json }}
    - timeout: {{ packages.lock_timeout }}

cluster_packages:
  pkg.installed:
    - pkgs: {{ names | json }}
    - install_recommends: false
    # Another process may have been quicker after the look at the lock.
    - retry:
        attempts: 2
        interval: 5
    - require:
      - package_lock: cluster_package_lock
{% for unit in held.keys() | list + masked %}
      - file: cluster_unit_{{ unit }}
{% endfor %}
