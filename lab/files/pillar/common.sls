# The lab's pillar for every host. Roles and kinds of hosts are added to it, see lab/salt.py.
libvirt:
  pki:
    ca_server: controller
  daemon_conf:
    # Hosts of a lab share the machine's DMI, and libvirt refuses to migrate a guest to "itself".
    host_uuid_source: machine-id
