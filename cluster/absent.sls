# Guarantees that this host is in no cluster and starts in none. Packages stay.
{% set cluster = salt['formula.config']('cluster') %}
{% set leaving = {} %}
{% for minion, node in cluster.nodes.items() if node.get('ensure') == 'absent' %}
{% do leaving.update({minion: node}) %}
{% endfor %}

cluster_left:
  cluster_member.left:
    - files:
      - /etc/corosync/corosync.conf
      - /etc/corosync/authkey
      - /etc/corosync/hypervisor/private.pem
{% if cluster.storage.lock_manager %}
      # Without it LVM would wait for locks that nobody gives any more.
      - /etc/lvm/lvmlocal.conf
      - /etc/systemd/system/pacemaker.service.d/hypervisor-locks.conf
{% endif %}
{% if cluster.storage.lock_manager == 'sanlock' %}
    - locks: [lvmlocks, lvmlockd, sanlock, wdmd]
{% endif %}
    - leaving: {{ leaving | json }}
