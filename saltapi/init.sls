# Operators on the master: salt-api on loopback, who may log in, and which function each may call on which host.
#
# The wrong pillar is refused here, before anything changes. No user and no group means that nothing is opened.
{% set saltapi = salt['formula.config']('saltapi') %}

{% if saltapi.users or saltapi.groups %}
include:
  # a Salt that is safe, and salt-api
  - saltapi.packages
  # who may do what
  - saltapi.config
{% if saltapi.inventory.enabled %}
  # what hosts say of themselves, kept and served
  - saltapi.inventory
{% endif %}
  # salt-api runs; it and salt-master restart once the run has ended
  - saltapi.service

{% if not saltapi.inventory.enabled %}
saltapi_inventory_absent:
  live_inventory.absent: []
{% endif %}

# Everything that was written is on disk when the run reports success.
saltapi_durable:
  durable.synced:
    - paths:
      - /etc
      - /usr
      - /var
    - order: last
{% else %}
include:
  # what was set up for the last user is taken away
  - saltapi.absent
{% endif %}
