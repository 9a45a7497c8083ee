# Guarantees that the page's files are those that `make web` has built on the master; where nothing was built, it says so.
{% set nginx = salt['formula.config']('nginx') %}

{% if nginx.server_names %}
nginx_web:
  nginx_site.page:
    - name: /usr/share/hypervisor-formula/web
    - source: salt://nginx/files/usr/share/hypervisor-formula/web
{% endif %}
