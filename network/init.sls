# Interfaces of a host, changed so that a change which cuts it off is undone by itself.
#
# The wrong pillar is refused here, before anything changes. Nothing declared means that nothing is done.
{% set network = salt['formula.config']('network') %}
