"""Who starts, grows and shrinks, and why a job waits. Pure: functions of queue, gangs and capacity."""
