# A host that can run virtual machines with KVM or QEMU.
#
# The wrong pillar is refused here, before anything changes.
{% set kvm = salt['formula.config']('kvm') %}

include:
  # the folder of disk images, before the packages bring one with other permissions
  - kvm.storage
  # QEMU, libvirt and their tools
  - kvm.packages
  # how guests are run: /etc/libvirt/qemu.conf
  - kvm.config
{% if kvm.operators %}
  # who may manage guests
  - kvm.access
{% endif %}
{% if kvm.iscsi.initiator or kvm.iscsi.targets %}
  # disks of iSCSI targets
  - kvm.iscsi
{% endif %}
{% if kvm.multipath %}
  # /etc/multipath.conf
  - kvm.multipath
{% endif %}
  # kernel modules and their options
  - kvm.modules
  # sysctls, merging of memory pages and arguments of the kernel
  - kvm.kernel
  # huge pages, and where guests find them
  - kvm.hugepages
{% if kvm.mounts %}
  # file systems of other hosts, and others
  - kvm.mounts
{% endif %}
{% if kvm.hostkeys.enabled %}
  # ssh between the listed hosts
  - kvm.hostkeys
{% endif %}

# Everything that was written is on disk when the run reports success.
kvm_durable:
  durable.synced:
    - paths:
      - /boot
      - /etc
      - /usr
      - /var
      - {{ kvm.images.path | yaml_dquote }}
    - order: last

{% if kvm.kernel.manage and (kvm.kernel.args or kvm.kernel.absent_args) %}
# The last step, since it may end in a reboot; that begins when this run has ended.
kvm_kernel_booted:
  kernel_cmdline.booted:
    - args: {{ kvm.kernel.args | json(sort_keys=False) }}
    - absent: {{ kvm.kernel.absent_args | json }}
    - allow_reboot: {{ kvm.kernel.allow_reboot | json }}
    - order: last
    - require:
      - kernel_cmdline: kvm_kernel_cmdline
      - durable: kvm_durable
{% endif %}
