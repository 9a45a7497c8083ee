# Guarantees the settings of the daemon that answers other hosts, and who may connect to it.
#
# Any certificate of libvirt's CA would otherwise be let in, as root: the hosts are named one by one.
{% set libvirt = salt['formula.config']('libvirt') %}
{% set settings = dict(libvirt.daemon_conf) %}
{% set allowed = [] %}
{% for host in libvirt.tls.allowed_hosts %}
{% do allowed.append('CN=' ~ host) %}
{% endfor %}
{% do settings.update({'tls_allowed_dn_list': allowed}) %}

include:
  - kvm.packages

libvirt_daemon_conf:
  libvirt_daemon.configured:
    - settings: {{ settings | json }}
    - require:
      - pkg: kvm_packages
