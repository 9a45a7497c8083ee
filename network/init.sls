# Interfaces of a host, changed so that a change which cuts it off is undone by itself.
#
# The wrong pillar is refused here, before anything changes. Nothing declared means that nothing is done.
{% set network = salt['formula.config']('network') %}
{% set interfaces = network.ethernets or network.bonds or network.vlans or network.bridges %}

{% if interfaces %}
include:
  # interfaces, and what makes and undoes changes to them
  - network.profile
{% endif %}
