"""The command line `lockstep`.

Data goes to standard output, everything said to a person to standard error. What a script can rely on:

    exit code  meaning
    0          done; of `submit --follow`, `wait` and `watch`: the job succeeded; of `pause`: it is paused
    1          the job failed or was cancelled, or any other error
    2          the command line is wrong
    3          the spec is refused, or the number of workers that `scale` asks for
    4          there is no such job or checkpoint
    5          the server cannot be reached
    6          not in time
    7          not possible as things stand: the job has ended or is still pausing, the cluster is too small, the
               request id is taken
    130        interrupted by Ctrl-C; a job that was followed goes on
"""

from lockstep.client.cli.app import main

__all__ = ["main"]
