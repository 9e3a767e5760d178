"""What both ends of a tunnel do alike: dial the gateway (`dial`), and be somebody in SSH by a wallet's key (`ssh_keys`)."""
