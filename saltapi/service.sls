# Guarantees that salt-api runs, now and after a boot, and that it and salt-master use what is on disk.
#
# They restart detached, once this run has ended and its result has had time to arrive, and only for changed files.
{% set saltapi = salt['formula.config']('saltapi') %}

include:
  - saltapi.config
{% if saltapi.inventory.enabled %}
  - saltapi.inventory
{% endif %}

saltapi_service:
  salt_api.running:
    - port: {{ saltapi.port }}
    # Nothing restarts for these: hashes are read at each login.
    - require:
      - salt_api: saltapi_users
{% if saltapi.inventory.enabled %}
      - live_inventory: saltapi_inventory_folder
{% endif %}
    - watch:
      - salt_api: saltapi_master
      - file: saltapi_code_auth
      - file: saltapi_code_netapi
      - file: saltapi_code_audit
      - file: saltapi_sandbox
{% if saltapi.inventory.enabled %}
      - file: saltapi_inventory_code
      - master_modules: saltapi_inventory_engine
{% endif %}
