# Guarantees the settings of libvirt's daemons, who may connect to them, and what a shutdown of the host
# does to its guests.
#
# Any certificate of libvirt's CA would otherwise be let in, as root: the hosts are named one by one.
{% set libvirt = salt['formula.config']('libvirt') %}
{% set settings = dict(libvirt.daemon_conf) %}
{% do settings.update(settings.pop('extra', {})) %}
{% set allowed = [] %}
{% for host in libvirt.tls.allowed_hosts %}
{% do allowed.append('CN=' ~ host) %}
{% endfor %}
{% do settings.update({'tls_allowed_dn_list': allowed}) %}
{% set own = {} %}
{% for daemon, keys in libvirt.daemon_conf_of.items() %}
{% set merged = dict(keys) %}
{% do merged.update(merged.pop('extra', {})) %}
{% do own.update({daemon: merged}) %}
{% endfor %}
{% set files = {} %}
{% for file, keys in libvirt.conf.items() %}
{% set merged = dict(keys) %}
{% do merged.update(merged.pop('extra', {})) %}
{% do files.update({file: merged}) %}
{% endfor %}

include:
  - kvm.packages

libvirt_daemon_conf:
  libvirt_daemon.configured:
    - settings: {{ settings | json }}
    - own: {{ own | json }}
    - files: {{ files | json }}
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
