"""What sets up interfaces on a host: one folder for each, with one contract (``contract.Backend``)."""
