"""Fault injection: hostile networks, full disks, damaged bytes and hostile input do a federation no lasting harm."""
