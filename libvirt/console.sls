# Guarantees that guests' consoles are served to the page, by a service that reaches nothing else; or that they are not.
#
# A new certificate needs no restart. A restart ends the consoles that are open, and no guest.
{% set libvirt = salt['formula.config']('libvirt') %}
{% set console = libvirt.console %}
{% set code = '/usr/lib/hypervisor-formula/console' %}
{% set units = '/etc/systemd/system' %}

{% if console.enabled %}
{% set packages = salt['formula.config']('kvm').packages %}
include:
  - kvm.packages
  - libvirt.pki

{% if not packages.roles.console %}
libvirt_console_packages_unknown:
  test.fail_without_changes:
    - name: >-
        libvirt:console:enabled needs websockify and setfacl; this system has them in other repositories alone: name the
        packages in kvm:packages:roles:console, which is empty
{% else %}
libvirt_console_packages:
  pkg.installed:
    - pkgs: {{ packages.roles.console | json }}
    - install_recommends: false
    - retry:
        attempts: 2
        interval: 5
    - require:
      - pkg: kvm_packages
{% endif %}

{% for name in ['hypervisor_console', 'console_tickets', 'console_serial'] %}
libvirt_console_code_{{ name }}:
  file.managed:
    - name: {{ code }}/{{ name }}.py
    - source: salt://libvirt/files{{ code }}/{{ name }}.py
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true
    - dir_mode: '0755'
{% endfor %}

libvirt_console_unit_serial:
  file.managed:
    - name: {{ units }}/hypervisor-console-serial@.service
    - source: salt://libvirt/files{{ units }}/hypervisor-console-serial@.service
    - user: root
    - group: root
    - mode: '0644'

libvirt_console_unit:
  file.managed:
    - name: {{ units }}/hypervisor-console.service
    - source: salt://libvirt/files{{ units }}/hypervisor-console.service.j2
    - template: jinja
    - context:
        console: {{ console | json }}
        code: {{ code }}
    - user: root
    - group: root
    - mode: '0644'

libvirt_console:
  service.running:
    - name: hypervisor-console
    - enable: true
    - require:
{% if packages.roles.console %}
      - pkg: libvirt_console_packages
{% else %}
      - test: libvirt_console_packages_unknown
{% endif %}
      - user: libvirt_console_user
      - host_certificate: libvirt_certificate_console
      - file: libvirt_console_unit_serial
    - watch:
      - file: libvirt_console_unit
      - file: libvirt_console_code_hypervisor_console
      - file: libvirt_console_code_console_tickets
      - file: libvirt_console_code_console_serial
{% else %}
libvirt_console:
  service.dead:
    - name: hypervisor-console
    - enable: false
{% endif %}
