# Guarantees, on the master, that salt-run has the runners of these formulas (fleet.cluster).
cluster_runners:
  master_modules.runners: []
