# Pillar of the suite `nginx`: the page under the host's own names, and one who may log in. Its password is in the tests.
saltapi:
  users:
    vera:
      password_hash: '$6$Wq3nT8vYpL2s$Y16BoFSnm3dcg1JPatb6ClHAcSuogaddI0X0GXgMxcK73/Q74CDSUCRwSDak4RGjTV.nqXXPFTW3PipORBzzf/'
      roles:
        viewer: [hypervisor]
nginx:
  server_names: [localhost, 127.0.0.1]
