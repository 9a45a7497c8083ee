# Interfaces of a host, changed so that a change which cuts it off is undone by itself; switches, tunnels, DHCP.
#
# The wrong pillar is refused here, before anything changes. Nothing declared means that nothing is done.
{% set network = salt['formula.config']('network') %}
{% set interfaces = network.ethernets or network.bonds or network.vlans or network.bridges %}
{% set ovs, dnsmasq = network.ovs.bridges or network.mesh, network.dnsmasq %}

{% if interfaces or ovs or dnsmasq %}
include:
{% if interfaces %}
  # interfaces, and what makes and undoes changes to them
  - network.profile
{% endif %}
{% if network.bridges %}
  # guests' DHCP crosses bridges
  - network.bridging
{% endif %}
{% if ovs %}
  # bridges and tunnels of Open vSwitch, encrypted or dropped
  - network.openvswitch
{% endif %}
{% if dnsmasq %}
  # DHCP and DNS on private networks
  - network.dnsmasq
{% endif %}
{% endif %}
{% if ovs or dnsmasq %}

# Everything that was written is on disk when the run reports success.
network_switch_durable:
  durable.synced:
    - paths:
      - /etc
      - /var
    - order: last
{% endif %}
