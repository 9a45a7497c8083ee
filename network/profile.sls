# Guarantees that the interfaces are as declared and the host is reached, or that they are as they were.
#
# It comes before all states of other formulas: those that need the network find the one that stays.
{% set network = salt['formula.config']('network') %}
{% set names = network.packages.interfaces | list %}
{% set switches = network.bridges.values() | selectattr('switch', 'defined') | map(attribute='switch') | list %}
{% if 'openvswitch' in switches %}
{% do names.extend(network.packages.ovs) %}
{% endif %}

network_interface_lock:
  package_lock.free:
    - packages: {{ names | json }}
    - order: 10

network_interface_packages:
  pkg.installed:
    - pkgs: {{ names | json }}
    - install_recommends: false
    - order: 10
    - require:
      - package_lock: network_interface_lock

network_program:
  file.recurse:
    - name: /usr/lib/hypervisor-formula
    - source: salt://network/files/usr/lib/hypervisor-formula
    - exclude_pat: E@(^|/)__pycache__
    - dir_mode: '0755'
    - file_mode: '0644'
    - user: root
    - group: root
    - order: 10

network_command:
  file.managed:
    - name: /usr/sbin/network-profile
    - source: salt://network/files/usr/sbin/network-profile.j2
    - template: jinja
    - context:
        python: {{ network.python | yaml_dquote }}
    - user: root
    - group: root
    - mode: '0755'
    - order: 10

network_unit_apply:
  file.managed:
    - name: /etc/systemd/system/hypervisor-network-apply.service
    - source: salt://network/files/etc/systemd/system/hypervisor-network-apply.service
    - user: root
    - group: root
    - mode: '0644'
    - order: 10

network_unit_boot:
  file.managed:
    - name: /etc/systemd/system/hypervisor-network-boot.service
    - source: salt://network/files/etc/systemd/system/hypervisor-network-boot.service
    - user: root
    - group: root
    - mode: '0644'
    - order: 10

network_boot:
  service.enabled:
    - name: hypervisor-network-boot.service
    - order: 10
    - require:
      - file: network_command
      - file: network_program
      - file: network_unit_boot

# A green run is on disk, without a change of interfaces too. Before one the program itself sees to what undoes it.
network_durable:
  durable.synced:
    - paths:
      - /etc
      - /usr
    - order: 10
    - require:
      - file: network_program
      - file: network_command
      - file: network_unit_apply
      - service: network_boot

{% if 'openvswitch' in switches %}
network_profile_switch:
  service.running:
    - name: {{ network.ovs.service }}
    - enable: true
    - order: 10
    - require:
      - pkg: network_interface_packages
{% endif %}

network_profile:
  network_profile.applied:
    - profile:
{% for key in ['backend', 'allow_uplink_change', 'confirm', 'ethernets', 'bonds', 'vlans', 'bridges'] %}
        {{ key }}: {{ network[key] | json }}
{% endfor %}
    - python: {{ network.python | yaml_dquote }}
    - order: 10
    - require:
      - pkg: network_interface_packages
      - durable: network_durable
{% if 'openvswitch' in switches %}
      - service: network_profile_switch
{% endif %}
