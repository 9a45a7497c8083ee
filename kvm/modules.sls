# Guarantees kernel modules, their options and which ones are not loaded, now as far as nothing has to be
# unloaded, and at every boot.
#
# A container shares its kernel with the machine below it: set kvm:kernel:manage to false there.
{% set kvm = salt['formula.config']('kvm') %}
{% if kvm.kernel.manage %}
{% set modules = dict(kvm.modules) %}
# Settings of net.bridge need this module; systemd loads modules before it sets sysctls.
{% if kvm.sysctl | select('match', 'net[./]bridge[./]') | list %}
{% do modules.setdefault('br_netfilter', {}) %}
{% endif %}
# modprobe puts all options together, and of the same one the last counts: systemd.conf has some.
{% for folder, file in {'modprobe.d': 'zz-hypervisor.conf', 'modules-load.d': 'hypervisor.conf'}.items() %}
kvm_modules_{{ folder }}:
{% if modules %}
  file.managed:
    - name: /etc/{{ folder }}/{{ file }}
    - source: salt://kvm/files/etc/{{ folder }}/{{ file }}.j2
    - template: jinja
    - context:
        modules: {{ modules | json }}
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true
{% else %}
  file.absent:
    - name: /etc/{{ folder }}/{{ file }}
{% endif %}
{% endfor %}

{% for name, module in modules.items() %}
{% set ensure = module.get('ensure', 'loaded') %}
kvm_module_{{ name }}:
  kernel_module.{{ ensure }}:
    - name: {{ name }}
{% if ensure != 'blacklisted' %}
    - options: {{ module.get('options', {}) | json }}
{% endif %}
    - require:
      - file: kvm_modules_modprobe.d
{% endfor %}
{% endif %}
