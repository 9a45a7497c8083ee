"""The live inventory on the master: what hosts say of themselves and their guests, kept in one database and served.

``messages`` judges what arrives on Salt's bus, ``store`` keeps it, ``jobs`` reads the trail of operators' jobs; the
engine ``inventory`` runs these by ``keeper``. ``service`` reads the database and serves what ``view`` makes of it,
``tokens`` says whose login a token is and ``access`` what that login may see.
"""
