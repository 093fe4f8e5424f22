"""In place of a launcher: a process that reads its orders, and leaves when its input ends."""

import sys

if __name__ == "__main__":
    sys.stdin.read()
