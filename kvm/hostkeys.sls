# Guarantees that root of this host reaches root of the other listed hosts by ssh, without a prompt, and no
# other host.
#
# Private keys stay here; public halves and host keys go through the master, which says whose they are. The key
# from pillar is read by the state itself, so that this file does not hold it.
{% set kvm = salt['formula.config']('kvm') %}
{% set ssh = kvm.hostkeys %}
{% if ssh.enabled %}
{% if opts.id in ssh.hosts %}
kvm_hostkeys_pair:
  host_keys.pair:
    - name: /etc/ssh/hypervisor/id_ed25519
    - pillar_key: kvm:hostkeys:private_key

kvm_hostkeys_published:
  host_keys.published:
    - name: /etc/ssh/hypervisor/id_ed25519
    - keeper: {{ ssh.keeper | yaml_dquote }}
    - source: {{ ssh.folder | yaml_dquote }}
    - wait_seconds: {{ ssh.wait_seconds }}
    - require:
      - host_keys: kvm_hostkeys_pair
{% endif %}

# A host that is not listed itself trusts nobody: what stood here goes.
kvm_hostkeys_trusted:
  host_keys.trusted:
    - name: /etc/ssh/hypervisor
    - hosts: {{ ssh.hosts | json }}
    - source: {{ ssh.folder | yaml_dquote }}
    - wait_seconds: {{ ssh.wait_seconds }}

kvm_hostkeys_ssh:
  host_ssh.configured:
    - name: /etc/ssh/hypervisor
    - hosts: {{ ssh.hosts | json }}
{% endif %}
