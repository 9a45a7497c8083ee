# Guarantees that salt-api is installed, and that this Salt is new enough to be safe behind a login.
{% set saltapi = salt['formula.config']('saltapi') %}

# Nothing is opened with a Salt that would not keep the door.
saltapi_salt:
  salt_api.supported:
    - backends: {{ saltapi.backends | json }}
    - inventory: {{ saltapi.inventory.enabled | json }}

saltapi_packages:
  salt_api.installed:
    - package: {{ saltapi.package }}
    - require:
      - salt_api: saltapi_salt
