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
kvm_modules_options:
  file.{{ 'managed' if modules else 'absent' }}:
    - name: /etc/modprobe.d/zz-hypervisor.conf
{% if modules %}
    - source: salt://kvm/files/etc/modprobe.d/zz-hypervisor.conf.j2
    - template: jinja
    - context:
        modules: &modules {{ modules | json }}
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true
{% endif %}

kvm_modules_loaded:
  file.{{ 'managed' if modules else 'absent' }}:
    - name: /etc/modules-load.d/hypervisor.conf
{% if modules %}
    - source: salt://kvm/files/etc/modules-load.d/hypervisor.conf.j2
    - template: jinja
    - context:
        modules: *modules
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true
{% endif %}

{% for name, module in modules.items() %}
{% set ensure = module.get('ensure', 'loaded') %}
kvm_module_{{ name }}:
  kernel_module.{{ ensure }}:
    - name: {{ name }}
{% if ensure != 'blacklisted' %}
    - options: {{ module.get('options', {}) | json }}
{% endif %}
    - require:
      - file: kvm_modules_options
{% endfor %}
{% endif %}
