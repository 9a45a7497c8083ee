# Guarantees that systemd listens for libvirt, on the TLS port too, and that daemons use what is on disk.
#
# A restart of a daemon leaves guests running. No guest, network or pool is started or stopped here.
# virtlogd and virtlockd hold what running guests need: they are told to reload, never restarted.
{% set libvirt = salt['formula.config']('libvirt') %}
{% set kvm = salt['formula.config']('kvm') %}

include:
  - kvm.packages
  - kvm.config
  - kvm.hugepages
  - libvirt.pki
  - libvirt.config

libvirt_daemon:
  libvirt_daemon.listening:
    - tls: {{ libvirt.tls.enabled | json }}
    - guests_service: true
    - require:
      - pkg: kvm_packages
      # The daemon would not start with an open TLS port and no certificate.
      - host_certificate: libvirt_certificate_libvirt
      # Read anew at every shutdown of the host, so nothing has to be restarted for it.
      - file: libvirt_host_shutdown
    - watch:
      - libvirt_conf: kvm_qemu_conf
      - libvirt_daemon: libvirt_daemon_conf
{# A daemon looks for mounts when it starts. #}
{% for size, pages in kvm.hugepages.items() if kvm.kernel.manage and pages.mount | default(size == '1G') %}
      - host_mount: kvm_hugepages_mount_{{ size }}
{% endfor %}

# No restart: a running daemon is told to read its certificates again. QEMU reads its own each time.
libvirt_certificate_loaded:
  libvirt_daemon.tls_loaded:
    - files:
      - /etc/pki/CA/cacert.pem
      - /etc/pki/libvirt/servercert.pem
      - /etc/pki/libvirt/private/serverkey.pem
    - require:
      - libvirt_daemon: libvirt_daemon
    - watch:
      - host_certificate: libvirt_certificate_libvirt
