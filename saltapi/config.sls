# Guarantees what salt-api serves and to whom: the users' hashes, the roles as Salt's own lists of who may call what,
# and the code that judges logins and requests.
#
# Whatever is not named is refused: other functions, other hosts, Salt's other ways to start something.
{% set saltapi = salt['formula.config']('saltapi') %}
{% set code = '/usr/lib/hypervisor-formula/master' %}

include:
  - saltapi.packages

{% for part, file in {'auth': 'auth/hypervisor.py', 'netapi': 'netapi/hypervisor_api.py', 'audit': 'hypervisor_audit.py'}.items() %}
saltapi_code_{{ part }}:
  file.managed:
    - name: {{ code }}/{{ file }}
    - source: salt://saltapi/files{{ code }}/{{ file }}
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true
    - dir_mode: '0755'
    - require:
      - salt_api: saltapi_packages
{% endfor %}

saltapi_users:
  salt_api.users:
    - name: /etc/salt/hypervisor-api.users
    - hashes:
{% for name, user in saltapi.users.items() if user.password_hash is defined %}
        {{ name }}: {{ user.password_hash | yaml_squote }}
{% else %}
        {}
{% endfor %}
    - require:
      - salt_api: saltapi_packages

{# The hashes have a file of their own. #}
{% set users = {} %}
{% for name, user in saltapi.users.items() %}
{% do users.update({name: user.roles | default({})}) %}
{% endfor %}
{% set groups = {} %}
{% for name, group in saltapi.groups.items() %}
{% do groups.update({name: group.roles | default({})}) %}
{% endfor %}
# Only the master reads it: the directory's password may stand in it.
saltapi_master:
  salt_api.master_file:
    - name: /etc/salt/master.d/hypervisor-api.conf
    - users: {{ users | json }}
    - groups: {{ groups | json }}
    - roles: {{ saltapi.roles | json }}
    - settings:
{% for key in ['backends', 'pam', 'ldap', 'port', 'threads', 'queue', 'max_body', 'token_expire', 'reads', 'audit', 'inventory'] %}
        {{ key }}: {{ saltapi[key] | json }}
{% endfor %}
    - code: {{ code }}
    - require:
      - salt_api: saltapi_users
      - file: saltapi_code_auth
      - file: saltapi_code_netapi
      - file: saltapi_code_audit

# What operators call of the master's own.
saltapi_runners:
  master_modules.runners:
    - require:
      - salt_api: saltapi_packages

saltapi_sandbox:
  file.managed:
    - name: /etc/systemd/system/salt-api.service.d/hypervisor.conf
    - source: salt://saltapi/files/etc/systemd/system/salt-api.service.d/hypervisor.conf
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true
    - require:
      - salt_api: saltapi_packages
