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
{% if ensure != 'absent' %}
{% for disk in guest.get('disks', []) if disk.get('pool') in libvirt.pools %}
      - storage_pool: libvirt_pool_{{ disk.pool }}
{% endfor %}
{% for nic in guest.get('interfaces', libvirt.nic_profiles.get(guest.get('nic_profile'), [])) if nic.get('source') in libvirt.networks %}
      - virtual_network: libvirt_network_{{ nic.source }}
{% endfor %}
{% endif %}
{% endfor %}
