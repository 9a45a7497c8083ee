# Guarantees that the packages of the enabled roles are installed; never upgrades or removes one.
#
# Debian starts daemons when it installs them, with an example for a configuration. They are held back until this host
# has the cluster's key, and one that has left never starts again.
{% set cluster = salt['formula.config']('cluster') %}
{% set packages = cluster.packages %}
{% set wanted = [] %}
{% for role in packages.enabled + [cluster.tooling] %}
{% do wanted.extend(packages.roles[role]) %}
{% endfor %}
{% do wanted.extend(packages.extra) %}
{% set names = wanted | unique | reject('in', packages.exclude) | list %}

cluster_node:
  cluster_node.fits:
    - nodes: {{ cluster.nodes | json }}

{% for unit in ['corosync', 'pacemaker'] %}
cluster_unit_{{ unit }}:
  file.managed:
    - name: /etc/systemd/system/{{ unit }}.service.d/hypervisor.conf
    - source: salt://cluster/files/etc/systemd/system/hypervisor.conf
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true
    - require:
      - cluster_node: cluster_node
{% endfor %}

{% if cluster.tooling == 'pcs' %}
# Its daemon would let anybody try passwords over the network; pcs manages this cluster without it.
cluster_unit_pcsd:
  file.symlink:
    - name: /etc/systemd/system/pcsd.service
    - target: /dev/null
    - require:
      - cluster_node: cluster_node
{% endif %}

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
      - file: cluster_unit_corosync
      - file: cluster_unit_pacemaker
{% if cluster.tooling == 'pcs' %}
      - file: cluster_unit_pcsd
{% endif %}
