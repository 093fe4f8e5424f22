"""What workers print: taken, kept on disk, and read again."""
