# Guarantees huge pages, now and after a reboot, and the mounts through which guests get them.
#
# A container shares its kernel with the machine below it: set kvm:kernel:manage to false there.
{% set kvm = salt['formula.config']('kvm') %}
{% if kvm.kernel.manage and not kvm.hugepages %}
kvm_hugepages_file:
  file.absent:
    - name: /etc/tmpfiles.d/hypervisor-hugepages.conf
{% elif kvm.kernel.manage %}
# systemd writes the same figures early at every boot, when memory is not fragmented yet.
kvm_hugepages_file:
  file.managed:
    - name: /etc/tmpfiles.d/hypervisor-hugepages.conf
    - source: salt://kvm/files/etc/tmpfiles.d/hypervisor-hugepages.conf.j2
    - template: jinja
    - context:
        hugepages: {{ kvm.hugepages | json }}
        kilobytes: {2M: 2048, 1G: 1048576}
    - user: root
    - group: root
    - mode: '0644'

{% for size, pages in kvm.hugepages.items() %}
{# systemd mounts the pages of the default size, 2M, itself. #}
{% set mount = pages.mount | default('/dev/hugepages1G' if size == '1G' else '') %}
{% set count = pages.total | default(pages) %}
kvm_hugepages_{{ size }}:
  hugepages.present:
    - name: {{ size }}
{% if pages.nodes is defined %}
    - nodes: {{ pages.nodes | json }}
{% else %}
    - count: {{ count }}
{% endif %}
    - require:
      - file: kvm_hugepages_file

{% if mount %}
kvm_hugepages_mount_{{ size }}:
{% if count == 0 %}
  host_mount.absent:
    - name: {{ mount | yaml_dquote }}
{% else %}
  host_mount.mounted:
    - name: {{ mount | yaml_dquote }}
    - device: hugetlbfs
    - fstype: hugetlbfs
    - opts:
      - pagesize={{ size }}
{% endif %}
{% endif %}
{% endfor %}
{% endif %}
