"""Participation in federations: invitations of organizations, and the data sets that they register as clients."""
