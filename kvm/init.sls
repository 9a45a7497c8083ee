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
  # sysctls, huge pages and arguments of the kernel
  - kvm.kernel

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
