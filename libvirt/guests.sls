# Guarantees the virtual machines of the pillar: made, kept as declared, updated in place, or absent.
#
# No guest that runs is restarted, and no disk is deleted, without the keys that allow it. Of a guest with "ha" every node
# has the definition, and the cluster alone starts and stops it.
{% set libvirt = salt['formula.config']('libvirt') %}
{% set clustered = libvirt.guests.values() | selectattr('ha', 'defined') | selectattr('ha') | list %}
{% set cluster = salt['formula.config']('cluster') if clustered else {} %}
{# The node that changes the CIB takes a guest out of it before its definition goes. #}
{% set first = cluster.get('bootstrap_node') == opts.id and cluster.get('nodes') %}
{# A node that leaves the cluster stops first, so that its guests move away. #}
{% set left = cluster.get('nodes', {}).get(opts.id, {}).get('ensure') == 'absent' %}
{% set leaving = clustered | selectattr('ensure', 'defined') | selectattr('ensure', 'equalto', 'absent') | list %}

include:
  - kvm.packages
  - kvm.storage
  - libvirt.service
{% if libvirt.pools %}
  - libvirt.pools
{% endif %}
{% if libvirt.networks %}
  - libvirt.networks
{% endif %}
{% if left %}
  - cluster.absent
{% elif first and leaving %}
  - cluster.cib
{% endif %}

{% for name, guest in libvirt.guests.items() %}
{% set ensure = guest.pop('ensure', 'running') %}
{% if guest.get('ha') and (left or ensure == 'absent') %}
libvirt_guest_{{ name }}:
  cluster_guest.absent:
    - name: {{ name | yaml_dquote }}
    - wait_seconds: {{ cluster.wait_seconds }}
    - require:
      - libvirt_daemon: libvirt_daemon
{% if left %}
      - cluster_member: cluster_left
{% elif first %}
      - cib: cluster_cib
{% endif %}
{% else %}
libvirt_guest_{{ name }}:
  {{ 'cluster_guest.defined' if guest.get('ha') else 'guest.' ~ ensure }}:
    - name: {{ name | yaml_dquote }}
{% for key, value in guest.items() %}
    - {{ key }}: {{ value | json }}
{% endfor %}
    - require:
      - pkg: kvm_packages
      - file: kvm_images
      - libvirt_daemon: libvirt_daemon
{% if ensure != 'absent' %}
{% for disk in guest.get('disks', []) if disk.get('pool') in libvirt.pools %}
      - storage_pool: libvirt_pool_{{ disk.pool }}
{% endfor %}
{% for nic in guest.get('interfaces', libvirt.nic_profiles.get(guest.get('nic_profile'), [])) if nic.get('source') in libvirt.networks %}
      - virtual_network: libvirt_network_{{ nic.source }}
{% endfor %}
{% endif %}
{% endif %}
{% endfor %}
