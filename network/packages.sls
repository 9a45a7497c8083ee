# Guarantees that the packages of the parts that the pillar uses are installed; never upgrades or removes one.
{% set network = salt['formula.config']('network') %}
{% set names = [] %}
{% if network.ovs.bridges or network.mesh %}
{% do names.extend(network.packages.ovs) %}
{% endif %}
{% if network.uses.tunnels %}
{% do names.extend(network.packages.guard) %}
{% endif %}
{% if network.uses.ipsec %}
{% do names.extend(network.packages.ipsec) %}
{% endif %}
{% for bridge in network.ovs.bridges.values() %}
{% for port in bridge.get('ports', {}).values() if port.get('dhcp4') %}
{% do names.extend(network.packages.dhcp) %}
{% endfor %}
{% endfor %}
{% if network.dnsmasq %}
{% do names.extend(network.packages.dnsmasq) %}
{% endif %}
{% set names = names | unique | list %}

network_package_lock:
  package_lock.free:
    - packages: {{ names | json }}

network_packages:
  pkg.installed:
    - pkgs: {{ names | json }}
    - install_recommends: false
    # Another process may have been quicker after the look at the lock.
    - retry:
        attempts: 2
        interval: 5
    - require:
      - package_lock: network_package_lock
