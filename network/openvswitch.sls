# Guarantees bridges, ports and tunnels of Open vSwitch, and that no tunnel's packet passes unencrypted.
#
# The guard is there before the first tunnel, and IPsec only where a tunnel has it: a plain bridge is no reason to touch
# the host's own VPN. Keys are read from pillar by the state itself, so that this file does not hold them.
{% set network = salt['formula.config']('network') %}
{% set bridges, mesh, ipsec = network.ovs.bridges, network.mesh, network.ipsec %}
{% for one in mesh.values() %}
{% do one.pop('psk', none) %}
{% endfor %}
{% for bridge in bridges.values() %}
{% for port in bridge.get('ports', {}).values() %}
{% do port.pop('psk', none) %}
{% endfor %}
{% endfor %}

{% set switches = network.bridges.values() | selectattr('switch', 'defined') | map(attribute='switch') | list %}
{# Where the host's own addresses are on a switch, that one has been started before they moved there. #}
{% set service = 'network_profile_switch' if 'openvswitch' in switches else 'network_ovs_service' %}

include:
  - network.packages
{% if network.uses.ipsec %}
  - network.ipsec
{% endif %}
{% if 'openvswitch' in switches %}
  - network.profile
{% endif %}

{% if ipsec.guard %}
network_tunnel_guard:
  tunnel_guard.loaded:
    - bridges: {{ bridges | json }}
    - mesh: {{ mesh | json }}
    - require:
      - pkg: network_packages
{% else %}
network_tunnel_guard:
  tunnel_guard.absent: []
{% endif %}

{% if service == 'network_ovs_service' %}
network_ovs_service:
  service.running:
    - name: {{ network.ovs.service }}
    - enable: true
    - require:
      - pkg: network_packages
{% endif %}

network_ovs:
  ovs.configured:
    - bridges: &bridges {{ bridges | json }}
    - mesh: &mesh {{ mesh | json }}
    - masters: &masters {{ network.confirm.masters | json }}
    - other_config: {{ network.ovs.other_config | json }}
    - auth: {{ (ipsec.auth if network.uses.ipsec else '') | yaml_dquote }}
    - require:
      - service: {{ service }}
      - tunnel_guard: network_tunnel_guard
{% if network.uses.ipsec %}
      - service: network_ipsec_service
{% endif %}

network_ovs_leases:
  ovs_leases.kept:
    - bridges: *bridges
    - mesh: *mesh
    - masters: *masters
    - packages: {{ network.packages.dhcp | json }}
    - require:
      - ovs: network_ovs

# A client that is stopped takes its port's addresses along, so they are given after that. A client that is missing
# keeps no other port from its addresses: the switch is enough.
network_ovs_addresses:
  ovs_addresses.applied:
    - bridges: *bridges
    - mesh: *mesh
    - masters: *masters
    - require_any:
      - ovs: network_ovs
      - ovs_leases: network_ovs_leases
{% if network.uses.ipsec %}

network_ipsec_established:
  tunnel_ipsec.established:
    - bridges: *bridges
    - mesh: *mesh
    - wait_seconds: {{ ipsec.wait_seconds }}
    - require:
      - ovs: network_ovs
{% endif %}
