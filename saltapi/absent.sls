# Guarantees that nobody may log in at the master once pillar names nobody: what saltapi has set up is taken away.
#
# Where nobody ever could, it does nothing.
{% set saltapi = salt['formula.config']('saltapi') %}

{% if not saltapi.users and not saltapi.groups %}
saltapi_absent:
  salt_api.absent:
    - name: /etc/salt/master.d/hypervisor-api.conf

saltapi_inventory_absent:
  live_inventory.absent: []
{% endif %}
