# Guarantees that LVM asks for locks where volume groups are shared, and that there is an agent for volumes that move with
# a guest. The daemons of dlm's locks are resources of the cluster; those of sanlock run before it.
{% set cluster = salt['formula.config']('cluster') %}

include:
  - cluster.packages
{% if cluster.storage.lock_manager == 'sanlock' %}
  - cluster.keys
{% endif %}

cluster_lvm_config:
  file.managed:
    - name: /etc/lvm/lvmlocal.conf
    - source: salt://cluster/files/etc/lvm/lvmlocal.conf
    - template: jinja
    - context:
        host_id: {{ cluster.nodes[opts.id].id if cluster.storage.lock_manager == 'sanlock' else 0 }}
        groups: {{ cluster.storage.volume_groups | list | json }}
    - mode: '0644'
    - require:
      - pkg: cluster_packages

cluster_volume_agent:
  file.managed:
    - name: /usr/lib/ocf/resource.d/hypervisor/SharedVolume
    - source: salt://cluster/files/usr/lib/ocf/resource.d/hypervisor/shared_volume.py
    - template: jinja
    - context:
        python: {{ cluster.python }}
    - user: root
    - group: root
    - mode: '0755'
    - makedirs: true
    - require:
      - pkg: cluster_packages

{% if cluster.storage.lock_manager == 'sanlock' %}
{% if cluster.storage.watchdog_module %}
cluster_watchdog_module_at_boot:
  file.managed:
    - name: /etc/modules-load.d/hypervisor-watchdog.conf
    - contents: {{ cluster.storage.watchdog_module | yaml_dquote }}
    - mode: '0644'
    - require:
      - pkg: cluster_packages

cluster_watchdog_module:
  kernel_module.loaded:
    - name: {{ cluster.storage.watchdog_module | yaml_dquote }}
    - require:
      - file: cluster_watchdog_module_at_boot
{% endif %}

# The first resets a host that cannot renew its locks, so that another one can take them; the last one takes them when the
# host boots, and gives them back when it shuts down.
{% for unit in ['wdmd', 'sanlock', 'lvmlockd', 'lvmlocks'] %}
cluster_lock_service_{{ unit }}:
  service.running:
    - name: {{ unit }}
    - enable: true
    - require:
      - file: cluster_lvm_config
      # Without it they do not start.
      - cluster_key: cluster_key
{% if not loop.first %}
      - service: cluster_lock_service_{{ loop.previtem }}
{% elif cluster.storage.watchdog_module %}
      - kernel_module: cluster_watchdog_module
{% endif %}
{% endfor %}
{% endif %}

# When the host boots, no volume is to be started before they are there.
cluster_lock_order:
{% if cluster.storage.lock_manager == 'sanlock' %}
  file.managed:
    - name: /etc/systemd/system/pacemaker.service.d/hypervisor-locks.conf
    - source: salt://cluster/files/etc/systemd/system/pacemaker-locks.conf
    - mode: '0644'
    - makedirs: true
{% else %}
  file.absent:
    - name: /etc/systemd/system/pacemaker.service.d/hypervisor-locks.conf
{% endif %}
    - require:
      - pkg: cluster_packages
