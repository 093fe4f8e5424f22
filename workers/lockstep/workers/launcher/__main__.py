"""`python -m lockstep.workers.launcher`: the process that the server starts."""

from lockstep.workers.launcher.launcher import main

if __name__ == "__main__":
    main()
