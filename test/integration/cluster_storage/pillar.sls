# A cluster of the one host that Test Kitchen has, with two further disks whose serials are sbd and san. The key is no
# secret.
cluster:
  name: suite
  bootstrap_node: '{{ grains.id }}'
  nodes:
    '{{ grains.id }}':
      id: 1
      name: '{{ grains.nodename }}'
      addresses: ['{{ grains.ipv4 | difference(["127.0.0.1"]) | first }}']
  keys:
    corosync: >-
      2vk6mt3ZE0vCHFyR3k5cC2gMlmUweqp6Fm8+Z4XJfBOay+N9NWuI88XhgqwEv7l9COoz6PuZaKT7v0qqrMks3WDEEct5l/qK
      NaF1vUj+cCKIvRGJFfoZOYOpW2H8iRUhodbjC18YaVZg8iPDX035rtrUuYqaV1ab2v5zSoJFjfKYKM5/uAy3wV/a31Z/BkZ5
  sbd:
    enabled: true
    devices: [/dev/disk/by-id/virtio-sbd]
    module: softdog
    blacklist: [iTCO_wdt]
  storage:
    lock_manager: dlm
    volume_groups:
      vmdata:
        devices: [/dev/disk/by-id/virtio-san]
        volumes:
          one: {size_mib: 64}
