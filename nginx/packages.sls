# Guarantees that nginx is installed, and that systemd keeps it from what this site does not need; never upgrades it.
#
# Debian starts nginx when it installs it, so what limits it is there before.
{% set nginx = salt['formula.config']('nginx') %}
{% set packages = nginx.packages %}
{% set wanted = [] %}
{% for role in packages.enabled %}
{% do wanted.extend(packages.roles[role]) %}
{% endfor %}
{% do wanted.extend(packages.extra) %}
{% set names = wanted | unique | reject('in', packages.exclude) | list %}
{% set drop_in = '/etc/systemd/system/' ~ nginx.service ~ '.service.d/hypervisor.conf' %}

{% if nginx.sandbox %}
nginx_sandbox:
  file.managed:
    - name: {{ drop_in }}
    - source: salt://nginx/files/etc/systemd/system/nginx.service.d/hypervisor.conf
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: true
{% else %}
nginx_sandbox:
  file.absent:
    - name: {{ drop_in }}
{% endif %}

# Another apt or dpkg is waited for. On other systems there is no such lock: dnf and zypper wait themselves.
nginx_package_lock:
  package_lock.free:
    - packages: {{ names | json }}
    - timeout: {{ packages.lock_timeout }}

nginx_packages:
  pkg.installed:
    - pkgs: {{ names | json }}
    - install_recommends: false
    # Another process may have been quicker after the look at the lock.
    - retry:
        attempts: 2
        interval: 5
    - require:
      - package_lock: nginx_package_lock
      - file: nginx_sandbox
