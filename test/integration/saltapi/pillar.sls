# Pillar of the suite `saltapi`: one user of each role, an operator of both hosts, and one that may do nothing. Their
# passwords are in the tests.
saltapi:
  users:
    vera:
      password_hash: '$6$Wq3nT8vYpL2s$Y16BoFSnm3dcg1JPatb6ClHAcSuogaddI0X0GXgMxcK73/Q74CDSUCRwSDak4RGjTV.nqXXPFTW3PipORBzzf/'
      roles:
        viewer: [hypervisor, hv1]
    otto:
      password_hash: '$6$Rk5mZ1xBcD9f$lnEtxvpD9E1bDFjtpM1IdkSAajckeCBGgUHBr6f4pgvp1dNhRHRYG6CJ76Zv8zTHxFuex3a5B7pJM/n/Fu5qI1'
      roles:
        operator: [hypervisor, hv1]
    olga:
      password_hash: '$6$Rk5mZ1xBcD9f$lnEtxvpD9E1bDFjtpM1IdkSAajckeCBGgUHBr6f4pgvp1dNhRHRYG6CJ76Zv8zTHxFuex3a5B7pJM/n/Fu5qI1'
      roles:
        operator: [hv1, hv2]
    anna:
      password_hash: '$6$Jf8gN6wEaS3u$OQEVVsr2jD.OY8IO0nXNcSMPIRDTZwhgIWVKsIrmw1pKdGXPpGBnRr3WYbuVOQLi71t.RJx/CWPE7EZ7VsepR/'
      roles:
        admin: [hypervisor, hv1]
    noone:
      password_hash: '$6$Wq3nT8vYpL2s$Y16BoFSnm3dcg1JPatb6ClHAcSuogaddI0X0GXgMxcK73/Q74CDSUCRwSDak4RGjTV.nqXXPFTW3PipORBzzf/'
    # Looks at two hosts, where the others have one.
    ines:
      password_hash: '$6$Zt7hQ2mNcVbX$14ruqn1bZ1eVT0yPWDDDzlcUde3vK2Wu0xUNHDDa7VSsXube1T8yUKS6TtSVdveft2wGcu3OFL4N8yL1hFUPR/'
      roles:
        viewer: [hypervisor, hv1, hv2]
  groups:
    helpdesk:
      roles:
        viewer: [hypervisor, hv1]
  # A group of the system, for a user without a hash.
  backends: [file, pam]
