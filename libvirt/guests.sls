# Guarantees the virtual machines of the pillar: made, kept as declared, updated in place, or absent.
#
# No guest that runs is restarted, and no disk is deleted, without the keys that allow it.
{% set libvirt = salt['formula.config']('libvirt') %}

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

{% for name, guest in libvirt.guests.items() %}
{% set ensure = guest.pop('ensure', 'running') %}
{% set profile = libvirt.nic_profiles.get(guest.get('nic_profile'), []) %}
{% set pools = guest.disks | default([]) | selectattr('pool', 'defined') | map(attribute='pool') | unique %}
{% set networks = guest.interfaces | default(profile) | selectattr('type', 'defined') | selectattr('type', 'equalto', 'network') %}
libvirt_guest_{{ name }}:
  guest.{{ ensure }}:
    - name: {{ name | yaml_dquote }}
{% for key, value in guest.items() %}
    - {{ key }}: {{ value | json }}
{% endfor %}
    - require:
      - pkg: kvm_packages
      - file: kvm_images
      - libvirt_daemon: libvirt_daemon
{% for pool in pools if pool in libvirt.pools and ensure != 'absent' %}
      - storage_pool: libvirt_pool_{{ pool }}
{% endfor %}
{% for network in networks | map(attribute='source') | unique if network in libvirt.networks and ensure != 'absent' %}
      - virtual_network: libvirt_network_{{ network }}
{% endfor %}
{% endfor %}
