"""What hostile networks, full disks, damaged bytes and hostile input do to a federation: nothing that stays."""
