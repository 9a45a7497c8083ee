# Guarantees that openvswitch-ipsec runs and finds keys again soon after a wrong one.
#
# It owns ipsec.conf, ipsec.secrets and strongswan.d/ovs.conf, and runs strongSwan itself: the service that strongSwan
# brings would start a second one.
{% set network = salt['formula.config']('network') %}
{% set ipsec = network.ipsec %}

include:
  - network.packages

{% if ipsec.starter %}
network_ipsec_starter:
  file.symlink:
    - name: /etc/systemd/system/{{ ipsec.starter }}
    - target: /dev/null
{% endif %}

# strongSwan sets the same when it starts; where it runs already it is not restarted for that.
network_ipsec_acquire:
  kernel_settings.applied:
    - settings:
        net.core.xfrm_acq_expires: {{ ipsec.acquire_expires }}

network_ipsec_conf:
  file.managed:
    - name: /etc/strongswan.d/hypervisor.conf
    - source: salt://network/files/etc/strongswan.d/hypervisor.conf.j2
    - template: jinja
    - context:
        seconds: {{ ipsec.acquire_expires }}
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true

network_ipsec_service:
  service.running:
    - name: {{ ipsec.service }}
    - enable: true
    - require:
      - pkg: network_packages
      - file: network_ipsec_conf

