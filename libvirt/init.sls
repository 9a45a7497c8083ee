# libvirt on a hypervisor: certificates, configuration, daemons that start on demand, and what the pillar
# declares of pools, networks and guests.
#
# The wrong pillar is refused here, before anything changes. Packages and qemu.conf are those of kvm/.
{% set libvirt = salt['formula.config']('libvirt') %}

include:
  # keys and certificates of libvirt, of QEMU's migrations and of consoles
  - libvirt.pki
  # settings of the daemons, who may connect, and what a shutdown of the host does to guests
  - libvirt.config
  # sockets, the TLS port, and every restart
  - libvirt.service
  # guests' consoles for the page
  - libvirt.console
{% if libvirt.firewall.networks or libvirt.firewall.ensure == 'absent' %}
  # the ports in the packet filter
  - libvirt.firewall
{% endif %}
{% if libvirt.events.enabled %}
  # what changes here, told to the master
  - libvirt.events
{% endif %}
{% if libvirt.pools %}
  # storage pools
  - libvirt.pools
{% endif %}
{% if libvirt.networks %}
  # virtual networks
  - libvirt.networks
{% endif %}
{% if libvirt.guests %}
  # virtual machines
  - libvirt.guests
{% endif %}

{% if not libvirt.events.enabled %}
libvirt_events_absent:
  live_inventory.silent:
    - name: /etc/salt/minion.d/hypervisor-events.conf
{% endif %}

# Everything that was written is on disk when the run reports success.
libvirt_durable:
  durable.synced:
    - paths:
      - /etc
      - /var
    - order: last
