"""How the outcome of a command is told to the shell."""

from __future__ import annotations

from lockstep.client import errors

OK = 0
FAILED = 1
INTERRUPTED = 130

BY_ERROR: dict[type[errors.LockstepError], int] = {
    errors.InvalidSpec: 3,
    errors.NotFound: 4,
    errors.Unavailable: 5,
    errors.DeadlineExceeded: 6,
    errors.FailedPrecondition: 7,
    errors.AlreadyExists: 7,
    errors.LockstepError: FAILED,
}

HELP = """Exit codes:

\b
0  done; of submit --follow, wait and watch: the job succeeded; of pause:
   it is paused
1  the job failed or was cancelled, or any other error
2  the command line is wrong
3  the server refuses the spec, or the workers that scale asks for
4  there is no such job or checkpoint
5  the server cannot be reached
6  not in time
7  not possible as things stand: the job has ended or is still pausing,
   the cluster is too small, the request id is taken, the folder of a
   download is there
130  interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP; a job that was
   followed goes on"""


def of(error: errors.LockstepError) -> int:
    """The exit code that an error ends the command with."""
    return next(BY_ERROR[kind] for kind in type(error).__mro__ if kind in BY_ERROR)
