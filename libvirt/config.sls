# Guarantees the settings of libvirt's daemons, who may connect to them, and what a shutdown of the host
# does to its guests.
#
# Any certificate of libvirt's CA would otherwise be let in, as root: the hosts are named one by one.
{% set libvirt = salt['formula.config']('libvirt') %}

include:
  - kvm.packages

libvirt_daemon_conf:
  libvirt_daemon.configured:
    - settings: {{ libvirt.daemon_conf | json }}
    - own: {{ libvirt.daemon_conf_of | json }}
    - files: {{ libvirt.conf | json }}
    - allowed_hosts: {{ libvirt.tls.allowed_hosts | json }}
    - require:
      - pkg: kvm_packages

libvirt_host_shutdown:
  file.managed:
    - name: {{ libvirt.host_shutdown.file | yaml_dquote }}
    - source: salt://libvirt/files/etc/default/libvirt-guests.j2
    - template: jinja
    - context:
        shutdown: {{ libvirt.host_shutdown | json }}
    - user: root
    - group: root
    - mode: '0644'
    - require:
      - pkg: kvm_packages
