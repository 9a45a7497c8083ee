# Guarantees the virtual networks that the pillar names, and disturbs no guest without consent.
{% set libvirt = salt['formula.config']('libvirt') %}
{# Guests that go are gone before what they used. #}
{% set going = libvirt.networks.values() | selectattr('ensure', 'defined') | selectattr('ensure', 'equalto', 'absent') | list %}
{% set leaving = {} %}
{% for guest, spec in libvirt.guests.items() if going and spec.get('ensure') == 'absent' %}
{% do leaving.update({guest: 'cluster_guest' if spec.get('ha') else 'guest'}) %}
{% endfor %}

include:
  - libvirt.service
{% if leaving %}
  - libvirt.guests
{% endif %}

{% for name, network in libvirt.networks.items() %}
{% set ensure = network.pop('ensure', 'running') %}
libvirt_network_{{ name }}:
  virtual_network.{{ ensure }}:
    - name: {{ name | yaml_dquote }}
{% if ensure != 'absent' %}
{% for key, value in network.items() %}
    - {{ key }}: {{ value | json }}
{% endfor %}
{% elif leaving %}
    - leaving: {{ leaving | list | json }}
{% endif %}
    - require:
      - libvirt_daemon: libvirt_daemon
{% for guest, state in leaving.items() if ensure == 'absent' %}
      - {{ state }}: libvirt_guest_{{ guest }}
{% endfor %}
{% endfor %}
