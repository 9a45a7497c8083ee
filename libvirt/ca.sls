# Guarantees, on the master, that each CA made by `bootstrap` can sign, is closed to all but root, and is
# published for the minions. A CA is never made or replaced here: who holds it is a decision of a person.
{% set libvirt = salt['formula.config']('libvirt') %}

{% for purpose in libvirt.pki.purposes %}
libvirt_ca_{{ purpose }}:
  certificate_authority.healthy:
    - name: {{ purpose }}
{% endfor %}
