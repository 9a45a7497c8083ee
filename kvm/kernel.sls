# Guarantees sysctls, now and after a reboot, and kernel arguments from the next boot.
#
# A container shares its kernel with the machine below it: set kvm:kernel:manage to false there.
{% set kvm = salt['formula.config']('kvm') %}
{% if kvm.kernel.manage %}
{% if kvm.sysctl %}
kvm_sysctl_file:
  file.managed:
    - name: /etc/sysctl.d/90-hypervisor.conf
    - source: salt://kvm/files/etc/sysctl.d/90-hypervisor.conf.j2
    - template: jinja
    - context:
        sysctl: {{ kvm.sysctl | json }}
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true
{% else %}
kvm_sysctl_file:
  file.absent:
    - name: /etc/sysctl.d/90-hypervisor.conf
{% endif %}

{% for key, value in kvm.sysctl.items() %}
kvm_sysctl_{{ key }}:
  sysctl.present:
    - name: {{ key }}
    - value: {{ value | string | yaml_dquote }}
    - config: /etc/sysctl.d/90-hypervisor.conf
    - require:
      - file: kvm_sysctl_file
{% endfor %}

kvm_kernel_cmdline:
  kernel_cmdline.present:
    - args: {{ kvm.kernel.args | json(sort_keys=False) }}
    - absent: {{ kvm.kernel.absent_args | json }}
{% endif %}
