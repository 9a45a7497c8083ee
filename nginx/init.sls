# The page and its way in, on the master: one port with TLS in front of salt-api, inventory and consoles.
#
# The wrong pillar is refused here, before anything changes. No name means that nothing is served.
{% set nginx = salt['formula.config']('nginx') %}

{% if nginx.server_names %}
include:
  # nginx itself, in a sandbox from its first start on
  - nginx.packages
  # a key and certificate for the web, and one that opens consoles on hypervisors
  - nginx.certificate
  # the page's own files
  - nginx.web
  # the site, tested before it goes live
  - nginx.site

# Everything that was written is on disk when the run reports success.
nginx_durable:
  durable.synced:
    - paths:
      - /etc
      - /usr
    - order: last
{% else %}
include:
  # what was served is taken away
  - nginx.absent
{% endif %}
