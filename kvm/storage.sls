# Guarantees the folder that holds disk images; never touches what is in it.
{% set kvm = salt['formula.config']('kvm') %}
{% set images = kvm.images %}

{% set own_group = images.user != 'root' or images.group != 'root' %}
{% if own_group or images.selinux_type or kvm.mounts %}
include:
  - kvm.packages
{% if kvm.mounts %}
  - kvm.mounts
{% endif %}
{% endif %}

kvm_images:
  file.directory:
    - name: {{ images.path | yaml_dquote }}
    - user: {{ images.user | yaml_dquote }}
    - group: {{ images.group | yaml_dquote }}
    - mode: {{ images.mode | yaml_dquote }}
    - makedirs: true
{% if own_group or kvm.mounts %}
    - require:
      # The packages make QEMU's user and group, and bring what mounts a network file system.
      - pkg: kvm_packages
{% for path, mount in kvm.mounts.items() if (images.path ~ '/').startswith(path ~ '/') and mount.get('ensure', 'mounted') == 'mounted' %}
      # Without its server the folder would be made below the mount, or the run would hang.
      - host_mount: kvm_mount_{{ path }}
{% endfor %}
{% endif %}

{% if images.selinux_type %}
# Where SELinux runs QEMU may use images of this type only; libvirt's default folder has it already.
kvm_images_label:
  file_label.present:
    - name: {{ images.path | yaml_dquote }}
    - setype: {{ images.selinux_type }}
    - require:
      - file: kvm_images
      - pkg: kvm_packages
{% endif %}
