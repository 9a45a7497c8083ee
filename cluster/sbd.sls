# Guarantees that sbd is set up, on disks that were empty or may be lost, and that corosync does not run without it.
#
# sbd starts and ends with corosync; nothing starts it here. Nothing is written as long as it runs with something else.
{% set cluster = salt['formula.config']('cluster') %}
{% set sbd = cluster.sbd %}
{% set nodes = [] %}
{% for minion, node in cluster.nodes.items() if node.get('ensure') != 'absent' %}
{% do nodes.append(minion) %}
{% endfor %}
{# Token and consensus, the time until a node counts as off, and the delay: a node must not be back before that. #}
{% set membership = ((cluster.token + 650 * [nodes | length - 2, 0] | max) * 22 + 9999) // 10000 %}
{% set dead = sbd.msgwait + sbd.delay_max if sbd.devices else 2 * sbd.watchdog_timeout %}
{# Of a fence device in pillar that has this one's name: no more than the CIB on a disk is compared with. #}
{% set stonith, own = {}, cluster.stonith.get('fence_sbd', {}) %}
{% for key in ['ensure', 'agent', 'parameters'] if key in own %}
{% do stonith.setdefault('fence_sbd', {}).update({key: own[key]}) %}
{% endfor %}
{% set declared = {'properties': cluster.properties, 'stonith': stonith, 'sbd': sbd} %}
{% set start_delay = sbd.get('start_delay', membership + dead) %}

include:
  - cluster.packages

cluster_sbd_unchanged:
  sbd.unchanged:
    - devices: {{ sbd.devices | json }}
    - watchdog: {{ sbd.watchdog | yaml_dquote }}
    - watchdog_timeout: {{ sbd.watchdog_timeout }}
    - require:
      - cluster_node: cluster_node

{% if sbd.module %}
cluster_sbd_module_at_boot:
  file.managed:
    - name: /etc/modules-load.d/hypervisor-watchdog.conf
    - contents: {{ sbd.module | yaml_dquote }}
    - mode: '0644'
    - require:
      - sbd: cluster_sbd_unchanged
{% endif %}

{% if sbd.blacklist %}
cluster_sbd_blacklist:
  file.managed:
    - name: /etc/modprobe.d/hypervisor-watchdog.conf
    - contents:
{% for module in sbd.blacklist %}
        - blacklist {{ module }}
{% endfor %}
    - mode: '0644'
    - require:
      - sbd: cluster_sbd_unchanged
{% endif %}

{% if sbd.module %}
cluster_sbd_module:
  kernel_module.loaded:
    - name: {{ sbd.module | yaml_dquote }}
    - require:
      - file: cluster_sbd_module_at_boot
{% endif %}

{% if sbd.devices %}
cluster_sbd_disks:
  sbd.disks:
    - devices: {{ sbd.devices | json }}
    - watchdog_timeout: {{ sbd.watchdog_timeout }}
    - msgwait: {{ sbd.msgwait }}
    - bootstrap: {{ cluster.bootstrap_node | yaml_dquote }}
    - allow_format: {{ cluster.storage.allow_format | json }}
    - wait_seconds: {{ cluster.wait_seconds }}
    - require:
      - pkg: cluster_packages
      - sbd: cluster_sbd_unchanged
{% endif %}

# Before sbd's file says anything else, so that a node which ends in between can start with either.
cluster_sbd_cib:
  cib.fits_sbd:
    - declared: {{ declared | json }}
    - nodes: {{ nodes | json }}
    - bootstrap: {{ cluster.bootstrap_node | yaml_dquote }}
    - require:
      - pkg: cluster_packages
      - sbd: cluster_sbd_unchanged
{% if sbd.devices %}
      - sbd: cluster_sbd_disks
{% endif %}

cluster_sbd_config:
  file.managed:
    - name: {{ sbd.file | yaml_dquote }}
    - source: salt://cluster/files/etc/default/sbd
    - template: jinja
    - mode: '0644'
    - context:
        devices: {{ sbd.devices | json }}
        watchdog: {{ sbd.watchdog | yaml_dquote }}
        watchdog_timeout: {{ sbd.watchdog_timeout }}
        start_delay: {{ start_delay }}
    - require:
      - pkg: cluster_packages
      - cib: cluster_sbd_cib

{% for unit, source in {'sbd': 'sbd.conf', 'corosync': 'corosync-sbd.conf'}.items() %}
cluster_sbd_unit_{{ unit }}:
  file.managed:
    - name: /etc/systemd/system/{{ unit }}.service.d/hypervisor-sbd.conf
    - source: salt://cluster/files/etc/systemd/system/{{ source }}
    - template: jinja
    - mode: '0644'
    - makedirs: true
    - context:
        start_delay: {{ start_delay }}
        alone: {{ (not sbd.devices) | json }}
    - require:
      - pkg: cluster_packages
      - cib: cluster_sbd_cib
{% endfor %}

cluster_sbd_service:
  service.enabled:
    - name: sbd
    - require:
      - file: cluster_sbd_config
      - file: cluster_sbd_unit_sbd
      - file: cluster_sbd_unit_corosync
{% if sbd.devices %}
      - sbd: cluster_sbd_disks
{% endif %}
{% if sbd.module %}
      - kernel_module: cluster_sbd_module
{% endif %}
