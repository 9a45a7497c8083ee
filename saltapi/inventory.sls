# Guarantees that the live inventory is kept and served on loopback: an engine in the master, and a sandboxed service
# that may read its database and ask salt-api whose a token is.
#
# The engine begins with the restart of the master, see saltapi.service.
{% set saltapi = salt['formula.config']('saltapi') %}
{% set code = '/usr/lib/hypervisor-formula/master/hypervisor_inventory' %}
{% set units = '/etc/systemd/system/hypervisor-inventory' %}

saltapi_inventory_user:
  user.present:
    - name: {{ saltapi.inventory.user }}
    - system: true
    - usergroup: true
    - createhome: false
    - home: /nonexistent
    - shell: /usr/sbin/nologin

# Files in it inherit its group, which may read them.
saltapi_inventory_folder:
  live_inventory.folder:
    - name: /var/lib/hypervisor-inventory
    - group: {{ saltapi.inventory.user }}
    - require:
      - user: saltapi_inventory_user

saltapi_inventory_code:
  file.recurse:
    - name: {{ code }}
    - source: salt://saltapi/files{{ code }}
    - exclude_pat: E@(^|/)__pycache__
    - user: root
    - group: root
    - dir_mode: '0755'
    - file_mode: '0644'

saltapi_inventory_engine:
  master_modules.engines: []

{% for kind in ['service', 'socket'] %}
saltapi_inventory_unit_{{ kind }}:
  file.managed:
    - name: {{ units }}.{{ kind }}
    - source: salt://saltapi/files{{ units }}.{{ kind }}.j2
    - template: jinja
    - context:
        user: {{ saltapi.inventory.user }}
        port: {{ saltapi.inventory.port }}
        python: {{ saltapi.inventory.python }}
    - user: root
    - group: root
    - mode: '0644'
{% endfor %}

# A restart of the socket takes the service with it.
saltapi_inventory_socket:
  service.running:
    - name: hypervisor-inventory.socket
    - enable: true
    - require:
      - user: saltapi_inventory_user
    - watch:
      - file: saltapi_inventory_unit_socket

saltapi_inventory_service:
  service.running:
    - name: hypervisor-inventory.service
    - enable: true
    - require:
      - service: saltapi_inventory_socket
      - live_inventory: saltapi_inventory_folder
    - watch:
      - file: saltapi_inventory_unit_service
      - file: saltapi_inventory_code
