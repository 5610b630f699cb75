"""What costs no training, or next to none, and every learned figure stands beside."""
