# Guarantees that the minion tells the master what changes here: guests, pools, networks, and the host's own figures.
#
# The engine is one of the minion's own processes; it begins with a restart of the minion, once the run has ended.
{% set libvirt = salt['formula.config']('libvirt') %}
{% set drop_in = '/etc/salt/minion.d/hypervisor-events.conf' %}

libvirt_events_program:
  file.managed:
    - name: /usr/lib/hypervisor-formula/libvirt_watch.py
    - source: salt://libvirt/files/usr/lib/hypervisor-formula/libvirt_watch.py
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true
    - dir_mode: '0755'

libvirt_events_conf:
  file.managed:
    - name: {{ drop_in }}
    - source: salt://libvirt/files{{ drop_in }}.j2
    - template: jinja
    - context:
        interval: {{ libvirt.events.interval }}
        reread: {{ libvirt.events.reread }}
        python: {{ libvirt.events.python }}
    - user: root
    - group: root
    - mode: '0644'
    - require:
      - file: libvirt_events_program

libvirt_events_engine:
  live_inventory.engine:
    - name: {{ drop_in }}
    - watch:
      - file: libvirt_events_conf
