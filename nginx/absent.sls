# Guarantees that the page is not served any more; nginx goes on with its other sites, and keys and certificates stay.
#
# Where it never was served, it does nothing.
{% set nginx = salt['formula.config']('nginx') %}

{% if not nginx.server_names %}
nginx_absent:
  nginx_site.absent:
    - name: /etc/nginx/conf.d/hypervisor.conf
    - web: /usr/share/hypervisor-formula/web
    - service: {{ nginx.service }}
    - sandbox: {{ '/etc/systemd/system/' ~ nginx.service ~ '.service.d/hypervisor.conf' }}
{% endif %}
