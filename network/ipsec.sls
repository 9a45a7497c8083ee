# Guarantees that openvswitch-ipsec runs, with a certificate where the pillar wants that, and finds keys again soon
# after a wrong one.
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

{% if ipsec.auth == 'certificate' %}
# Their own CA, so that a certificate of another purpose opens no tunnel. openvswitch-ipsec loads RSA keys alone.
network_ipsec_certificate:
  host_certificate.managed:
    - name: /etc/ipsec.d/certs/hypervisor-tunnel.pem
    - purpose: tunnel
    - key: /etc/ipsec.d/private/hypervisor-tunnel.pem
    - ca: /etc/ipsec.d/cacerts/hypervisor-tunnel.pem
    - ca_source: {{ (ipsec.pki.ca_folder ~ '/tunnel.crt') | yaml_dquote }}
    - ca_server: {{ ipsec.pki.ca_server | yaml_dquote }}
    - days_remaining: {{ ipsec.pki.days_remaining }}
    - key_type: rsa
    - wait_seconds: {{ ipsec.pki.wait_seconds }}
    - require:
      - pkg: network_packages
{% endif %}

network_ipsec_service:
  service.running:
    - name: {{ ipsec.service }}
    - enable: true
    - require:
      - pkg: network_packages
      - file: network_ipsec_conf
{% if ipsec.auth == 'certificate' %}
    # It looks at names of files alone, so a new certificate in the same file would not be noticed.
    - watch:
      - host_certificate: network_ipsec_certificate
{% endif %}

