# Guarantees a key and certificate each for libvirt, for QEMU and for consoles, each of a CA of its own.
#
# The CA is asked only if something is missing, wrong or due; a client uses the server's certificate.
{% set libvirt = salt['formula.config']('libvirt') %}
{% set pki = libvirt.pki %}

include:
  - kvm.packages

libvirt_pki_folder_ca:
  file.directory:
    - name: /etc/pki/CA
    - user: root
    - group: root
    - mode: '0755'
    - makedirs: true

libvirt_pki_folder_libvirt:
  file.directory:
    - name: /etc/pki/libvirt
    - user: root
    - group: root
    - mode: '0755'
    - makedirs: true

libvirt_pki_folder_private:
  file.directory:
    - name: /etc/pki/libvirt/private
    - user: root
    - group: root
    - mode: '0700'
    - require:
      - file: libvirt_pki_folder_libvirt

libvirt_certificate_libvirt:
  host_certificate.managed:
    - name: /etc/pki/libvirt/servercert.pem
    - purpose: libvirt
    - key: /etc/pki/libvirt/private/serverkey.pem
    - ca: /etc/pki/CA/cacert.pem
    - ca_source: {{ (pki.ca_folder ~ '/libvirt.crt') | yaml_dquote }}
    - ca_server: {{ pki.ca_server | yaml_dquote }}
    - subject_names: {{ pki.names | json }}
    - days_remaining: {{ pki.days_remaining }}
    - key_type: {{ pki.key_type }}
    - wait_seconds: {{ pki.wait_seconds }}
    - require:
      - file: libvirt_pki_folder_ca
      - file: libvirt_pki_folder_private

libvirt_client_certificate_libvirt:
  file.symlink:
    - name: /etc/pki/libvirt/clientcert.pem
    - target: servercert.pem
    - require:
      - host_certificate: libvirt_certificate_libvirt

libvirt_client_key_libvirt:
  file.symlink:
    - name: /etc/pki/libvirt/private/clientkey.pem
    - target: serverkey.pem
    - require:
      - host_certificate: libvirt_certificate_libvirt

libvirt_pki_folder_qemu:
  file.directory:
    - name: /etc/pki/qemu
    - user: root
    - group: root
    - mode: '0755'
    - makedirs: true

# The group of the key exists once the packages are installed.
libvirt_certificate_qemu:
  host_certificate.managed:
    - name: /etc/pki/qemu/server-cert.pem
    - purpose: qemu
    - key: /etc/pki/qemu/server-key.pem
    - ca: /etc/pki/qemu/ca-cert.pem
    - ca_source: {{ (pki.ca_folder ~ '/qemu.crt') | yaml_dquote }}
    - ca_server: {{ pki.ca_server | yaml_dquote }}
    - subject_names: {{ pki.names | json }}
    - days_remaining: {{ pki.days_remaining }}
    - key_type: {{ pki.key_type }}
    - key_user: {{ pki.qemu_key.user | yaml_dquote }}
    - key_group: {{ pki.qemu_key.group | yaml_dquote }}
    - key_mode: {{ pki.qemu_key.mode | yaml_dquote }}
    - wait_seconds: {{ pki.wait_seconds }}
    - require:
      - file: libvirt_pki_folder_qemu
      - pkg: kvm_packages

libvirt_client_certificate_qemu:
  file.symlink:
    - name: /etc/pki/qemu/client-cert.pem
    - target: server-cert.pem
    - require:
      - host_certificate: libvirt_certificate_qemu

libvirt_client_key_qemu:
  file.symlink:
    - name: /etc/pki/qemu/client-key.pem
    - target: server-key.pem
    - require:
      - host_certificate: libvirt_certificate_qemu

{% if libvirt.console.enabled %}
# The service of consoles has a user of its own, who reads its key and nothing else of this host's.
libvirt_console_group:
  group.present:
    - name: hypervisor-console
    - system: true

libvirt_console_user:
  user.present:
    - name: hypervisor-console
    - gid: hypervisor-console
    - home: /nonexistent
    - createhome: false
    - shell: /usr/sbin/nologin
    - system: true
    - require:
      - group: libvirt_console_group
{% endif %}

libvirt_pki_folder_console:
  file.directory:
    - name: /etc/pki/console
    - user: root
    - group: root
    - mode: '0755'
    - makedirs: true

libvirt_certificate_console:
  host_certificate.managed:
    - name: /etc/pki/console/server-cert.pem
    - purpose: console
    - key: /etc/pki/console/server-key.pem
    - ca: /etc/pki/console/ca-cert.pem
    - ca_source: {{ (pki.ca_folder ~ '/console.crt') | yaml_dquote }}
    - ca_server: {{ pki.ca_server | yaml_dquote }}
    - subject_names: {{ pki.names | json }}
    - days_remaining: {{ pki.days_remaining }}
    - key_type: {{ pki.key_type }}
{% if libvirt.console.enabled %}
    - key_group: hypervisor-console
    - key_mode: '0440'
{% endif %}
    - wait_seconds: {{ pki.wait_seconds }}
    - require:
      - file: libvirt_pki_folder_console
{% if libvirt.console.enabled %}
      - group: libvirt_console_group
{% endif %}
