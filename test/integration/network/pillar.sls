# A bridge of guests alone: no consent is needed, since the connection to the master is not touched.
network:
  confirm:
    window: 30
  bridges:
    br-suite:
      addresses: [10.214.1.1/24]
