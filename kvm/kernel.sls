# Guarantees sysctls and the merging of equal memory pages, now and after a reboot, and kernel arguments from
# the next boot.
#
# A container shares its kernel with the machine below it: set kvm:kernel:manage to false there.
{% set kvm = salt['formula.config']('kvm') %}
{% if kvm.kernel.manage %}
{% set bridged = kvm.sysctl | select('match', 'net[./]bridge[./]') | list %}
{% if bridged %}
include:
  - kvm.modules

{% endif %}
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

kvm_sysctl:
  kernel_settings.applied:
    - settings: {{ kvm.sysctl | json }}
    - file: /etc/sysctl.d/90-hypervisor.conf
    - require:
      - file: kvm_sysctl_file
{% if bridged %}
      # Without the module there are no such settings, now or at boot.
      - kernel_module: kvm_module_br_netfilter
{% endif %}
{% else %}
kvm_sysctl_file:
  file.absent:
    - name: /etc/sysctl.d/90-hypervisor.conf
{% endif %}

{% if kvm.ksm %}
kvm_ksm_file:
  file.managed:
    - name: /etc/tmpfiles.d/hypervisor-ksm.conf
    - source: salt://kvm/files/etc/tmpfiles.d/hypervisor-ksm.conf.j2
    - template: jinja
    - context:
        ksm: {{ kvm.ksm | json }}
    - user: root
    - group: root
    - mode: '0644'

kvm_ksm:
  ksm.configured:
    - enabled: {{ kvm.ksm.get('enabled') | json }}
    - unmerge: {{ kvm.ksm.get('unmerge', false) | json }}
    - tunables: {{ kvm.ksm.get('tunables', {}) | json }}
    - require:
      - file: kvm_ksm_file
{% else %}
kvm_ksm_file:
  file.absent:
    - name: /etc/tmpfiles.d/hypervisor-ksm.conf
{% endif %}

kvm_kernel_cmdline:
  kernel_cmdline.present:
    - args: {{ kvm.kernel.args | json(sort_keys=False) }}
    - absent: {{ kvm.kernel.absent_args | json }}
{% endif %}
